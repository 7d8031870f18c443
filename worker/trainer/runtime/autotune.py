"""CPU autotuning: which compute dtype, how many threads, how long a packed batch; timed once.

A rule stands (device.py, and the longest batches) until something else is faster by a margin that noise does not reach.
What was requested by name is not timed. The result is part of the execution plan, so no later attempt measures again.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import RunSpec, TrainerSpec
from app.domain.planning import estimate
from app.domain.planning.duration import LAUNCH_TOKENS
from app.domain.planning.estimate import ROW_LADDER, Device, Placement
from app.domain.planning.execution_plan import ExecutionPlan
from app.domain.planning.packing import Lengths
from app.domain.planning.workload import Work
from app.system.model_files import read_catalog_entry
from worker.trainer.distributed import parallel
from worker.trainer.memory import device_memory
from worker.trainer.memory.placement import job_spec_of
from worker.trainer.records import RecordWriter
from worker.trainer.runtime.cpu_load import Sample, is_crowded, take_sample
from worker.trainer.runtime.device import device_name, granted_cores, with_compute_dtype
from worker.trainer.runtime.layer_benchmark import Clock, LayerBenchmark

MARGIN = 0.1  # of the rule's time: what saves less is not worth a choice that noise may have made
# float32 must take less than this of bfloat16's time in the products: all that is beside them moves twice the bytes.
WIDE_WITHIN = 0.65
PRODUCTS = 0.59  # of a step's time (docs/decisions/0018)
LEAST_PARAMETERS = 10_000_000  # of all linear layers: a smaller model spends its time elsewhere
TOKENS = 256  # of the row by which dtypes and threads are judged
ROUNDS = 2  # after one that compiles the kernels; the quickest counts
LADDER = ROW_LADDER["cpu"]

Timed = dict[ExecutionPlan, float]  # seconds a token, of a layer's products


def fastest_plan(
    spec: TrainerSpec, workdir: Path, device: torch.device, rule: ExecutionPlan, emit: RecordWriter
) -> ExecutionPlan:
    """Return the rule's plan, or one that was measured to be faster, with an event. Errors go to the log alone."""
    if device.type != "cpu" or parallel.world_size() > 1 or not (spec.threads is None or _is_dtype_open(spec, rule)):
        return rule
    began = time.monotonic()
    try:
        entry = read_catalog_entry(spec.base.directory)
        if entry.linear_parameters < LEAST_PARAMETERS:
            return rule
        found = _find(spec, workdir, entry, rule)
    except Exception:  # a choice that only saves time never costs the job
        traceback.print_exc(file=sys.stderr)
        print(f"What is fastest here could not be timed; going on in {_read_catalog_entry(rule)}.", file=sys.stderr)
        return rule
    emit.message(found.text, **found.data(time.monotonic() - began))
    return found.plan


@dataclass
class Findings:
    """`plan` is the choice so far; the tables have seconds a token, by what was varied, the rule's first."""

    plan: ExecutionPlan
    dtypes: dict[str, float] = field(default_factory=dict)
    threads: dict[int, float] = field(default_factory=dict)
    rows: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        compared = [
            *_compared(self.dtypes),
            *_compared({_threads(count): each for count, each in self.threads.items()}),
            *_compared({f"rows of {tokens:,}": each for tokens, each in self.rows.items()}),
        ]
        chosen = f"Training in {_read_catalog_entry(self.plan)}."
        return " ".join([f"Timed a layer's products: {'; '.join(compared)}.", *self.notes, chosen])

    def data(self, seconds: float) -> dict[str, Any]:
        """Return microseconds a token of a layer's products; the names of a JSON object are text."""
        tables: dict[str, Mapping[Any, float]] = {
            "compute_dtype": self.dtypes, "threads": self.threads, "row_tokens": self.rows
        }  # fmt: skip
        timed = {
            what: {str(key): round(1e6 * each, 4) for key, each in table.items()} for what, table in tables.items()
        }
        chosen = {
            "compute_dtype": self.plan.compute_dtype,
            "threads": self.plan.threads,
            "row_tokens": None if self.plan.row_tokens == LADDER[0] else self.plan.row_tokens,
        }
        return {"probe_seconds": round(seconds, 3), "microseconds_per_token": timed, "chosen": chosen}


def _is_dtype_open(spec: TrainerSpec, rule: ExecutionPlan) -> bool:
    """16-bit LoRA is 16 bits by name."""
    return spec.dtype_is_free and spec.quantization is not None and rule.compute_dtype != "float32"


def _find(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, rule: ExecutionPlan) -> Findings:
    shapes, rank, found = list(entry.target_modules.values()), spec.run.lora.r, Findings(rule)
    products, largest = LayerBenchmark(shapes, rank), LayerBenchmark([max(shapes, key=math.prod)], rank)
    if _is_dtype_open(spec, rule):
        _find_dtype(spec, workdir, entry, products, found)
    if spec.threads is None:  # a requested number of threads is for runs that repeat: rows stay as planned
        _find_threads_and_rows(products, largest, found)
    return found


def _find_dtype(
    spec: TrainerSpec, workdir: Path, entry: CatalogEntry, products: LayerBenchmark, found: Findings
) -> None:
    """By the processor time of one thread, which no neighbour changes."""
    plans = [
        _with(found.plan, threads=1, row_tokens=TOKENS, compute_dtype=dtype)
        for dtype in (found.plan.compute_dtype, "float32")
    ]
    timed = _timed(products, plans, time.thread_time)
    found.dtypes = {plan.compute_dtype: each for plan, each in timed.items()}
    narrow, wide = (timed[plan] for plan in plans)
    if wide > WIDE_WITHIN * narrow:
        return
    if _has_room(spec, workdir, entry, found.plan.compute_dtype):
        found.plan = _with(found.plan, compute_dtype="float32")
    else:
        found.notes.append("float32 would be faster, but takes more memory than there is.")


def _find_threads_and_rows(products: LayerBenchmark, largest: LayerBenchmark, found: Findings) -> None:
    """By the clock, as threads that wait for each other take no processor time; so it counts on quiet cores only.

    Rows by the largest layer alone: each product of each length leaves half a megabyte of compiled code behind.
    """
    before, rule = take_sample(), found.plan
    counts = [rule.threads, *sorted({granted_cores(), max(1, rule.threads // 2)} - {rule.threads})]
    timed = _timed(products, [_with(rule, threads=each, row_tokens=TOKENS) for each in counts], time.perf_counter)
    found.threads = {plan.threads: seconds for plan, seconds in timed.items()}
    if not _is_crowded(before, counts, found):
        found.plan = _with(rule, threads=fastest_threads(found.threads))
        found.rows = _time_rows(largest, found.plan, _rows_worth_timing(), rounds=1)
        row = fastest_row(found.rows)
        if row and row == fastest_row(_time_rows(largest, found.plan, [max(found.rows), row], rounds=ROUNDS)):
            found.plan = _with(found.plan, row_tokens=row)
        if _is_crowded(before, counts, found):
            found.plan = rule


def _is_crowded(before: Sample, counts: Sequence[int], found: Findings) -> bool:
    if not is_crowded(before, take_sample(), len(os.sched_getaffinity(0)), max(counts)):
        return False
    found.notes.append("Other programs use the cores, so threads and rows stay what they are by rule.")
    return True


def _time_rows(largest: LayerBenchmark, plan: ExecutionPlan, lengths: Sequence[int], rounds: int) -> dict[int, float]:
    timed = _timed(largest, [_with(plan, row_tokens=each) for each in lengths], time.perf_counter, rounds)
    return {each.row_tokens: seconds for each, seconds in timed.items()}


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


def _timed(products: LayerBenchmark, plans: Sequence[ExecutionPlan], clock: Clock, rounds: int = ROUNDS) -> Timed:
    """The plans take turns, so that what disturbs one disturbs the others as well."""
    took = [{plan: products.seconds(plan, clock) for plan in plans} for _ in range(1 + rounds)]
    return {plan: min(each[plan] for each in took[1:]) / plan.row_tokens for plan in plans}


def _has_room(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, narrow: str) -> bool:
    """Whether 32 bits fit and have nothing recomputed that 16 would keep."""
    if spec.out_of_memory_kills:
        return False
    wide, usual = (_placement(spec, workdir, entry, dtype) for dtype in ("float32", narrow))
    again, usually = ((each.plan.recompute, each.plan.recompute_layers) for each in (wide, usual))
    return wide.fits and again == usually


def _placement(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, dtype: str) -> Placement:
    """Before anything is read: as if every document were as long as any can be."""
    longest, lengths = _most_tokens(spec.run, workdir), Lengths()
    for _ in range(spec.run.hyperparameters.batch_size):
        lengths.add([longest])
    job = job_spec_of(with_compute_dtype(spec, dtype), spec.run)
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


def _with(plan: ExecutionPlan, **changes: Any) -> ExecutionPlan:
    return plan.model_copy(update=changes)


def _read_catalog_entry(plan: ExecutionPlan) -> str:
    rows = "" if plan.row_tokens == LADDER[0] else f", rows of at most {plan.row_tokens:,} tokens"
    return f"{plan.compute_dtype} with {_threads(plan.threads)}{rows}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
