"""CPU autotuning: measure once which compute dtype, number of threads and packed batch length are the fastest.

The defaults (device.py, and the longest batches) are replaced only by what is faster by more than measurement noise.
What the request names is not measured. The result is part of the execution plan, so later attempts do not measure.
"""

from __future__ import annotations

import math
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
from app.domain.planning.estimate import CANDIDATE_ROW_TOKENS, Device, Placement
from app.domain.planning.execution_plan import ExecutionPlan
from app.domain.planning.packing import SequenceLengths
from app.domain.planning.workload import Workload
from app.system.cpu_info import usable_cores
from app.system.model_files import entry_of
from worker.trainer.distributed import parallel
from worker.trainer.memory import device_memory
from worker.trainer.memory.placement import job_spec_of
from worker.trainer.records import RecordWriter
from worker.trainer.runtime.cpu_load import CpuSample, is_crowded, take_sample
from worker.trainer.runtime.device import device_name, granted_cores, with_compute_dtype
from worker.trainer.runtime.layer_benchmark import Clock, LayerBenchmark

MIN_SAVING = 0.1  # of the default's time: a smaller difference may be noise
# float32 must take less than this share of bfloat16's time in the matrix products, because the other operations move
# twice as many bytes.
MAX_FLOAT32_TIME = 0.65
PRODUCTS_SHARE = 0.59  # of a step's time (docs/decisions/0018)
MIN_PARAMETERS = 10_000_000  # of all linear layers: in a smaller model other operations take most of the time
BENCHMARK_TOKENS = 256  # of the batch with which dtypes and numbers of threads are compared
ROUNDS = 2  # after a first one that compiles the kernels; the shortest time counts
BATCH_LENGTHS = CANDIDATE_ROW_TOKENS["cpu"]  # the longest first

SecondsPerToken = dict[ExecutionPlan, float]  # of a layer's matrix products


def fastest_plan(
    spec: TrainerSpec, workdir: Path, device: torch.device, default: ExecutionPlan, emit: RecordWriter
) -> ExecutionPlan:
    """Return the default plan, or a faster measured one, and report it in an event. Errors are only logged."""
    is_choice_free = spec.threads is None or _is_dtype_free(spec, default)
    if device.type != "cpu" or parallel.world_size() > 1 or not is_choice_free:
        return default
    started = time.monotonic()
    try:
        entry = entry_of(spec.base)
        if entry.linear_parameters < MIN_PARAMETERS:
            return default
        result = _autotune(spec, workdir, entry, default)
    except Exception:  # autotuning only saves time, so its errors must not fail the job
        traceback.print_exc(file=sys.stderr)
        print(f"CPU autotuning failed; training continues in {_describe(default)}.", file=sys.stderr)
        return default
    emit.message(result.text, **result.data(time.monotonic() - started))
    return result.plan


@dataclass
class AutotuneResult:
    """The chosen plan, and seconds per token of a layer by dtype, threads and batch length; the default is first."""

    plan: ExecutionPlan
    dtypes: dict[str, float] = field(default_factory=dict)
    threads: dict[int, float] = field(default_factory=dict)
    batch_lengths: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        comparisons = [
            *_compare(self.dtypes),
            *_compare({_threads_text(count): seconds for count, seconds in self.threads.items()}),
            *_compare({f"batches of {tokens:,} tokens": seconds for tokens, seconds in self.batch_lengths.items()}),
        ]
        chosen = f"CPU autotuning: training in {_describe(self.plan)}."
        return " ".join([chosen, f"Measured times of a layer: {'; '.join(comparisons)}.", *self.notes])

    def data(self, seconds: float) -> dict[str, Any]:
        """Return the event's data: microseconds per token by choice (keys of JSON objects are strings)."""
        tables: dict[str, Mapping[Any, float]] = {
            "compute_dtype": self.dtypes,
            "threads": self.threads,
            "row_tokens": self.batch_lengths,
        }
        microseconds = {
            name: {str(key): round(1e6 * seconds, 4) for key, seconds in table.items()}
            for name, table in tables.items()
        }
        chosen = {
            "compute_dtype": self.plan.compute_dtype,
            "threads": self.plan.threads,
            "row_tokens": None if self.plan.row_tokens == BATCH_LENGTHS[0] else self.plan.row_tokens,
        }
        return {"probe_seconds": round(seconds, 3), "microseconds_per_token": microseconds, "chosen": chosen}


def _is_dtype_free(spec: TrainerSpec, default: ExecutionPlan) -> bool:
    """Return whether float32 may replace the default dtype. A request without quantization names 16 bits."""
    return spec.dtype_is_free and spec.quantization is not None and default.compute_dtype != "float32"


def _autotune(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, default: ExecutionPlan) -> AutotuneResult:
    shapes, rank, result = list(entry.target_modules.values()), spec.run.lora.r, AutotuneResult(default)
    layer, largest = LayerBenchmark(shapes, rank), LayerBenchmark([max(shapes, key=math.prod)], rank)
    if _is_dtype_free(spec, default):
        _choose_dtype(spec, workdir, entry, layer, result)
    if spec.threads is None:  # with a requested number of threads, runs must repeat, so nothing measured may change
        _choose_threads_and_batch_length(layer, largest, result)
    return result


def _choose_dtype(
    spec: TrainerSpec, workdir: Path, entry: CatalogEntry, layer: LayerBenchmark, result: AutotuneResult
) -> None:
    """Compare the CPU times of one thread, which other programs do not affect."""
    plans = [
        _with(result.plan, threads=1, row_tokens=BENCHMARK_TOKENS, compute_dtype=dtype)
        for dtype in (result.plan.compute_dtype, "float32")
    ]
    seconds = _measure(layer, plans, time.thread_time)
    result.dtypes = {plan.compute_dtype: seconds[plan] for plan in plans}
    default_seconds, float32_seconds = (seconds[plan] for plan in plans)
    if float32_seconds > MAX_FLOAT32_TIME * default_seconds:
        return
    if _float32_fits(spec, workdir, entry, result.plan.compute_dtype):
        result.plan = _with(result.plan, compute_dtype="float32")
    else:
        result.notes.append("float32 would be faster, but needs more memory than is free.")


def _choose_threads_and_batch_length(layer: LayerBenchmark, largest: LayerBenchmark, result: AutotuneResult) -> None:
    """Compare elapsed times, because waiting threads use no CPU time; so the result counts only on idle cores.

    Batch lengths are compared with the largest matrix product only: oneDNN keeps half a megabyte of compiled code for
    each product and length.
    """
    before, default = take_sample(), result.plan
    counts = [default.threads, *sorted({granted_cores(), max(1, default.threads // 2)} - {default.threads})]
    plans = [_with(default, threads=count, row_tokens=BENCHMARK_TOKENS) for count in counts]
    result.threads = {plan.threads: seconds for plan, seconds in _measure(layer, plans, time.perf_counter).items()}
    if _are_cores_busy(before, counts, result):
        return
    result.plan = _with(default, threads=fastest_threads(result.threads))
    result.batch_lengths = _measure_lengths(largest, result.plan, _promising_lengths(), rounds=1)
    length = fastest_length(result.batch_lengths)
    if length:  # confirmed by a second measurement
        candidates = [max(result.batch_lengths), length]
        if length == fastest_length(_measure_lengths(largest, result.plan, candidates, rounds=ROUNDS)):
            result.plan = _with(result.plan, row_tokens=length)
    if _are_cores_busy(before, counts, result):
        result.plan = default


def _are_cores_busy(before: CpuSample, counts: Sequence[int], result: AutotuneResult) -> bool:
    if not is_crowded(before, take_sample(), usable_cores(), max(counts)):
        return False
    result.notes.append("Other programs use the CPU, so the default threads and batch length are kept.")
    return True


def _measure_lengths(
    largest: LayerBenchmark, plan: ExecutionPlan, lengths: Sequence[int], rounds: int
) -> dict[int, float]:
    """Return the seconds per token of each batch length."""
    seconds = _measure(largest, [_with(plan, row_tokens=length) for length in lengths], time.perf_counter, rounds)
    return {measured.row_tokens: each for measured, each in seconds.items()}


def fastest_threads(seconds: Mapping[int, float]) -> int:
    """Return the fastest number of threads if it saves at least MIN_SAVING, else the first, which is the default."""
    default, best = next(iter(seconds)), min(seconds, key=lambda count: seconds[count])
    return best if seconds[best] < (1 - MIN_SAVING) * seconds[default] else default


def fastest_length(seconds: Mapping[int, float]) -> int | None:
    """Return the batch length that saves at least MIN_SAVING of a step; None for the longest, which is the default."""
    longest = max(seconds)
    cost = {tokens: _step_cost(tokens, each / seconds[longest]) for tokens, each in seconds.items()}
    best = min(cost, key=lambda tokens: cost[tokens])
    return best if cost[best] < (1 - MIN_SAVING) * cost[longest] else None


def _promising_lengths() -> list[int]:
    """Return the batch lengths that would be chosen if their matrix products took half the time.

    In shorter batches the launches of the operators cost too much.
    """
    max_cost = (1 - MIN_SAVING) * _step_cost(BATCH_LENGTHS[0], 1.0)
    longest, *others = BATCH_LENGTHS
    return [longest, *(tokens for tokens in others if _step_cost(tokens, 0.5) < max_cost)]


def _step_cost(row_tokens: int, products: float) -> float:
    """Return the time of a token in a step, in units of the longest batch.

    `products` is the time of its matrix products as a multiple of that in the longest batch.
    """
    return (1 - PRODUCTS_SHARE + PRODUCTS_SHARE * products) * (1 + LAUNCH_TOKENS["cpu"] / row_tokens)


def _measure(
    layer: LayerBenchmark, plans: Sequence[ExecutionPlan], clock: Clock, rounds: int = ROUNDS
) -> SecondsPerToken:
    """Measure the plans in turns, so that a disturbance affects all of them alike."""
    seconds = [{plan: layer.seconds(plan, clock) for plan in plans} for _ in range(1 + rounds)]
    return {plan: min(measured[plan] for measured in seconds[1:]) / plan.row_tokens for plan in plans}


def _float32_fits(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, default_dtype: str) -> bool:
    """Return whether float32 fits into memory without more recomputation than the default dtype needs."""
    if spec.out_of_memory_kills:
        return False
    float32, default = (_placement(spec, workdir, entry, dtype) for dtype in ("float32", default_dtype))
    recompute, default_recompute = (
        (placement.plan.recompute, placement.plan.recompute_layers) for placement in (float32, default)
    )
    return float32.fits and recompute == default_recompute


def _placement(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, dtype: str) -> Placement:
    """Plan the memory before any file is tokenized: every document counts with its maximum length."""
    longest, lengths = _max_document_tokens(spec.run, workdir), SequenceLengths()
    for _ in range(spec.run.hyperparameters.batch_size):
        lengths.add([longest])
    job = job_spec_of(with_compute_dtype(spec, dtype), spec.run)
    cpu = torch.device("cpu")
    device = Device("cpu", device_name(cpu), device_memory.measure(cpu).capacity_bytes, torch.get_num_threads())
    return estimate.estimate_placement(entry, job, Workload.of(job, lengths), device, spec.measurements)


def _max_document_tokens(run: RunSpec, workdir: Path) -> int:
    """Return an upper bound: a token has at least one byte, usually four, so this also covers the chat template."""
    with (workdir / run.training_file).open("rb") as lines:
        longest_bytes = max(map(len, lines), default=0)
    documents = 2 if run.method == "dpo" else 1
    return max(1, documents * min(run.hyperparameters.context_length, longest_bytes))


def _compare(seconds: Mapping[str, float]) -> list[str]:
    """Describe each time as a multiple of the first, which is that of the default."""
    if len(seconds) < 2:
        return []
    first, *others = seconds
    multiples = ", ".join(f"{name} {seconds[name] / seconds[first]:.2f}x" for name in others)
    return [f"{multiples} that of {first}"]


def _with(plan: ExecutionPlan, **changes: Any) -> ExecutionPlan:
    return plan.model_copy(update=changes)


def _describe(plan: ExecutionPlan) -> str:
    is_default = plan.row_tokens == BATCH_LENGTHS[0]
    batches = "" if is_default else f" and packed batches of at most {plan.row_tokens:,} tokens"
    return f"{plan.compute_dtype} with {_threads_text(plan.threads)}{batches}"


def _threads_text(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
