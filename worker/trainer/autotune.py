"""What is fastest on this processor: which compute dtype, how many threads, how long a row; timed once.

A rule stands (device.py, and the plan's longest rows) until something else is faster by a margin that noise does not
reach. What was asked for by name is not timed. The answer is kept with the other choices, so no later attempt asks.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from app.domain import estimate
from app.domain.catalog import CatalogEntry, describe
from app.domain.duration import LAUNCH_TOKENS
from app.domain.estimate import ROW_LADDER, Device, Placement
from app.domain.events import Message
from app.domain.layout import Lengths
from app.domain.spec import RunSpec, TrainerSpec
from app.domain.work import Work
from worker.trainer import device_memory, parallel
from worker.trainer.device import Way, device_name, dtype_name, granted_cores, with_compute_dtype
from worker.trainer.emit import Ledger
from worker.trainer.openmp import Sample, is_crowded, take_sample
from worker.trainer.placement import MOST_BATCH, as_job
from worker.trainer.products import Clock, Products

MARGIN = 0.1  # of the rule's time: a way that saves less is not worth a choice that noise may have made
# float32 must take less than this of bfloat16's time in the products: all that is beside them moves twice the bytes.
WIDE_WITHIN = 0.65
PRODUCTS = 0.59  # of a step's time (docs/decisions/0018)
LEAST_PARAMETERS = 10_000_000  # of all linear layers: a smaller model spends its time elsewhere
TOKENS = 256  # of the row by which dtypes and threads are judged
ROUNDS = 2  # after one that compiles the kernels; the quickest counts
LADDER = ROW_LADDER["cpu"]

Timed = dict[Way, float]  # seconds a token, of a layer's products


def fastest_way(spec: TrainerSpec, workdir: Path, device: torch.device, rule: Way, say: Ledger) -> Way:
    """The rule, or what was found to be faster, and said. Where nothing can be timed, the log says so."""
    if device.type != "cpu" or parallel.world_size() > 1 or not (spec.threads is None or _is_dtype_open(spec, rule)):
        return rule
    began = time.monotonic()
    try:
        entry = describe(spec.base.directory)
        if entry.linear_parameters < LEAST_PARAMETERS:
            return rule
        found = _find(spec, workdir, entry, rule)
    except Exception:  # a choice that only saves time never costs the job
        traceback.print_exc(file=sys.stderr)
        print(f"What is fastest here could not be timed; going on in {rule}.", file=sys.stderr)
        return rule
    for each in spec.runs:
        if each.run_id not in say.endings:
            say(found.message(each.run_id, time.monotonic() - began))
    return found.way


@dataclass
class Findings:
    """`way` is the choice so far; the tables have seconds a token, by what was varied, the rule's first."""

    way: Way
    dtypes: dict[str, float] = field(default_factory=dict)
    threads: dict[int, float] = field(default_factory=dict)
    rows: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def message(self, run_id: str, seconds: float) -> Message:
        compared = [
            *_compared(self.dtypes),
            *_compared({_threads(count): each for count, each in self.threads.items()}),
            *_compared({f"rows of {tokens:,}": each for tokens, each in self.rows.items()}),
        ]
        text = " ".join([f"Timed a layer's products: {'; '.join(compared)}.", *self.notes, f"Training in {self.way}."])
        return Message(run_id=run_id, message=text, data=self._data(seconds))

    def _data(self, seconds: float) -> dict[str, Any]:
        """Microseconds a token of a layer's products; the names of a JSON object are text."""
        tables: dict[str, Mapping[Any, float]] = {
            "compute_dtype": self.dtypes, "threads": self.threads, "row_tokens": self.rows
        }  # fmt: skip
        timed = {
            what: {str(key): round(1e6 * each, 4) for key, each in table.items()} for what, table in tables.items()
        }
        chosen = {**vars(self.way), "compute_dtype": dtype_name(self.way.compute_dtype)}
        return {"probe_seconds": round(seconds, 3), "microseconds_per_token": timed, "chosen": chosen}


def _is_dtype_open(spec: TrainerSpec, rule: Way) -> bool:
    """16-bit LoRA is 16 bits by name."""
    return spec.dtype_is_free and spec.quantization is not None and rule.compute_dtype != torch.float32


def _find(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, rule: Way) -> Findings:
    shapes, rank, found = list(entry.target_modules.values()), spec.runs[0].lora.r, Findings(rule)
    products, largest = Products(shapes, rank), Products([max(shapes, key=math.prod)], rank)
    if _is_dtype_open(spec, rule):
        _find_dtype(spec, workdir, entry, products, found)
    if spec.threads is None:  # a number of threads that was asked for is what makes runs repeat: rows stay as planned
        _find_threads_and_rows(products, largest, found)
    return found


def _find_dtype(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, products: Products, found: Findings) -> None:
    """By the processor time of one thread, which no neighbour changes."""
    alone = replace(found.way, threads=1, row_tokens=TOKENS)
    ways = [alone, replace(alone, compute_dtype=torch.float32)]
    timed = _timed(products, ways, time.thread_time)
    found.dtypes = {dtype_name(way.compute_dtype): each for way, each in timed.items()}
    narrow, wide = (timed[way] for way in ways)
    if wide > WIDE_WITHIN * narrow:
        return
    if _has_room(spec, workdir, entry, found.way.compute_dtype):
        found.way = replace(found.way, compute_dtype=torch.float32)
    else:
        found.notes.append("float32 would be faster, but takes more memory than there is.")


def _find_threads_and_rows(products: Products, largest: Products, found: Findings) -> None:
    """By the clock, as threads that wait for each other take no processor time; so it counts on quiet cores only.

    Rows by the largest layer alone: each product of each length leaves half a megabyte of compiled code behind.
    """
    before, rule = take_sample(), found.way
    counts = [rule.threads, *sorted({granted_cores(), max(1, rule.threads // 2)} - {rule.threads})]
    timed = _timed(products, [replace(rule, threads=each, row_tokens=TOKENS) for each in counts], time.perf_counter)
    found.threads = {way.threads: seconds for way, seconds in timed.items()}
    if not _is_crowded(before, counts, found):
        found.way = replace(rule, threads=fastest_threads(found.threads))
        found.rows = _time_rows(largest, found.way, _rows_worth_timing(), rounds=1)
        row = fastest_row(found.rows)
        if row and row == fastest_row(_time_rows(largest, found.way, [max(found.rows), row], rounds=ROUNDS)):
            found.way = replace(found.way, row_tokens=row)
        if _is_crowded(before, counts, found):
            found.way = rule


def _is_crowded(before: Sample, counts: Sequence[int], found: Findings) -> bool:
    if not is_crowded(before, take_sample(), len(os.sched_getaffinity(0)), max(counts)):
        return False
    found.notes.append("Other programs use the cores, so threads and rows stay what they are by rule.")
    return True


def _time_rows(largest: Products, way: Way, lengths: Sequence[int], rounds: int) -> dict[int, float]:
    timed = _timed(largest, [replace(way, row_tokens=each) for each in lengths], time.perf_counter, rounds)
    return {each.row_tokens: seconds for each, seconds in timed.items() if each.row_tokens}


def fastest_threads(seconds: Mapping[int, float]) -> int:
    """Of the counts, the rule's first, the one that saves enough; else the rule's."""
    rule, best = next(iter(seconds)), min(seconds, key=lambda count: seconds[count])
    return best if seconds[best] < (1 - MARGIN) * seconds[rule] else rule


def fastest_row(seconds: Mapping[int, float]) -> int | None:
    """The length of a row that saves enough; None where it is the longest, so that the plan is as free as ever."""
    top = max(seconds)
    cost = {tokens: _step_cost(tokens, each / seconds[top]) for tokens, each in seconds.items()}
    best = min(cost, key=lambda tokens: cost[tokens])
    return best if cost[best] < (1 - MARGIN) * cost[top] else None


def _rows_worth_timing() -> list[int]:
    """Those that would win if their products took half the time; of others the operators' launches cost too much."""
    most = (1 - MARGIN) * _step_cost(LADDER[0], 1.0)
    return [tokens for tokens in LADDER if tokens == LADDER[0] or _step_cost(tokens, 0.5) < most]


def _step_cost(row_tokens: int, products: float) -> float:
    """Time of a token in a step, where its products take so many times what they take in the longest row."""
    return (1 - PRODUCTS + PRODUCTS * products) * (1 + LAUNCH_TOKENS["cpu"] / row_tokens)


def _timed(products: Products, ways: Sequence[Way], clock: Clock, rounds: int = ROUNDS) -> Timed:
    """The ways take turns, so that what disturbs one disturbs the others as well."""
    took = [{way: products.seconds(way, clock) for way in ways} for _ in range(1 + rounds)]
    return {way: min(each[way] for each in took[1:]) / (way.row_tokens or 1) for way in ways}


def _has_room(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, narrow: torch.dtype) -> bool:
    """Whether 32 bits fit and have nothing recomputed that 16 would keep."""
    if spec.out_of_memory_kills:
        return False
    wide, usual = (_placement(spec, workdir, entry, dtype) for dtype in (torch.float32, narrow))
    again, usually = ((each.mode.recompute, each.mode.recompute_layers) for each in (wide, usual))
    return wide.fits and again == usually


def _placement(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, dtype: torch.dtype) -> Placement:
    """Before anything is read: as if every document were as long as any can be."""
    batch = min(MOST_BATCH, sum(run.hyperparameters.batch_size for run in spec.runs))
    longest, lengths = max(_most_tokens(run, workdir) for run in spec.runs), Lengths()
    for _ in range(batch):
        lengths.add([longest])
    knobs = spec.runs[0].hyperparameters.model_copy(update={"batch_size": batch})
    job = as_job(with_compute_dtype(spec, dtype), spec.runs[0].model_copy(update={"hyperparameters": knobs}))
    cpu = torch.device("cpu")
    device = Device("cpu", device_name(cpu), device_memory.measure(cpu).capacity_bytes, torch.get_num_threads())
    return estimate.place(entry, job, Work.of(job, lengths), device, spec.measurements)


def _most_tokens(run: RunSpec, workdir: Path) -> int:
    """A token is a byte at least, usually four, which leaves room for what a template adds."""
    with (workdir / run.training_file).open("rb") as lines:
        longest = max(map(len, lines), default=0)
    sides = 2 if run.method == "dpo" else 1
    return max(1, sides * min(run.hyperparameters.context_length, longest))


def _compared(seconds: Mapping[str, float]) -> list[str]:
    """Each as a multiple of the first, which is the rule's."""
    if len(seconds) < 2:
        return []
    first, *others = seconds
    multiples = ", ".join(f"{name} {seconds[name] / seconds[first]:.2f}" for name in others)
    return [f"{multiples} times {first}"]


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
