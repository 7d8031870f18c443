"""What a job will need, before it runs: steps, memory and time on each kind of device, and how it would be laid out.

One function for the API, the command line and the trainer. It reckons from shapes (memory, duration) and
corrects itself by what earlier jobs of the same kind measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.duration import (
    BASE_BYTES_PER_SECOND,
    DEFAULT_CORE_FLOPS,
    START_SECONDS,
    cost,
    guessed_flops,
    step_flop,
    validation_flop,
)
from app.domain.planning.execution_plan import ExecutionPlan, Measurement
from app.domain.planning.memory import LONGEST_IN_BLOCKS, DeviceKind, Memory, memory
from app.domain.planning.packing import largest_row, mean_row, most_attended
from app.domain.planning.workload import Work

# The lengths of a row that are tried. Longer rows share the cost of launching and dequantising among more tokens: on a
# CPU, 2,048 were seen to be hardly faster than 1,024, and take 0.6 GB more for a model of 135M.
ROW_LADDER: dict[DeviceKind, tuple[int, ...]] = {
    "cpu": (1024, 768, 512, 256, 128),
    "cuda": (8192, 6144, 4096, 3072, 2048, 1024, 512),
}
LEVEL = 0.012  # layouts that differ by less in time are equally fast: the smallest of them is taken
# What oneDNN compiles for a row of a new length, 30 to 44 products, is mapped in larger pieces than it fills; the last
# 128 products stay. Where what is mapped counts, eight rows took 854 MB; by what is touched, which `memory` knows, 640
# (with 256 kept).
MAPPED_IN_VAIN_BYTES = 26_000_000  # a row
MOST_ROWS_KEPT = 5  # 128 by 30: reckoned, not measured
HEADROOM = 0.97  # of the memory there is; what a fresh process cannot foresee


@dataclass(frozen=True)
class Device:
    """A place to train at, as a worker describes it, or as the trainer finds it."""

    kind: DeviceKind
    name: str
    memory_bytes: int  # of the card; on a CPU what the process may use
    cores: int = 1
    core_flops: float = DEFAULT_CORE_FLOPS  # of one core of a CPU, as guessed from what it says of itself

    @property
    def guessed_flops(self) -> float:
        return guessed_flops(self.kind, self.name, self.cores, self.core_flops)


@dataclass(frozen=True)
class Correction:
    """Medians over earlier jobs: measured / predicted memory, FLOP a second, seconds beside steps and validations."""

    loaded: float = 1.0
    working: float = 1.0
    flops: float | None = None
    other_seconds: float | None = None
    jobs: int = 0

    @classmethod
    def of(
        cls, measurements: Sequence[Measurement], plan: ExecutionPlan, working_bytes: int, tokens: int
    ) -> Correction:
        """From jobs with the same device, base and quantization. Without one that was laid out alike the others count:
        the formulas err alike in all. What a step adds is lowered only by jobs that were near in size."""
        alike = [each for each in measurements if each.is_like(plan)]
        found = alike or measurements
        near = [each.working_ratio for each in found if each.is_near(working_bytes, tokens)]
        far = [max(1.0, each.working_ratio) for each in found]
        rates = [each.flops for each in found if each.flops]
        others = [each.other_seconds for each in measurements if each.other_seconds is not None]
        return cls(
            loaded=statistics.median([each.loaded_ratio for each in found] or [1.0]),
            working=statistics.median(near or far or [1.0]),
            flops=statistics.median(rates) if rates else None,
            other_seconds=statistics.median(others) if others else None,
            jobs=len(alike),
        )


@dataclass(frozen=True)
class Placement:
    """A job on one device, in the fastest layout that fits, or the smallest there is."""

    device: Device
    fits: bool
    plan: ExecutionPlan
    memory: Memory
    formula: Memory  # the same before any correction, which is what gets corrected
    largest_row: int  # tokens
    step_flop: float  # of a token
    seconds: float
    basis: Literal["formula", "measured"]

    @property
    def message(self) -> str:
        need, have = _gigabytes(self.memory.total), _gigabytes(self.device.memory_bytes)
        if self.fits:
            return f"Fits {self.device.name}: {need} of {have}, with {self.plan}."
        remedy = "Lower hyperparameters.context_length first, then lora.r; without quantization, ask for 4 bits."
        if self.memory.process + self.memory.base > HEADROOM * self.device.memory_bytes:  # whatever the knobs say
            remedy = "Choose a smaller base model or a worker with more memory; without quantization, ask for 4 bits."
        return f"Does not fit {self.device.name}: it needs {need} of {have} even with {self.plan}. {remedy}"


@dataclass(frozen=True)
class _Rows:
    """What the steps' rows are like at one row length."""

    largest: int
    mean: float
    count: float
    densest: int  # tokens of a token's document, in the row in which it is most


def place(
    entry: CatalogEntry,
    spec: JobSpec,
    work: Work,
    device: Device,
    measurements: Sequence[Measurement] = (),
    loaded_bytes: int | None = None,
    most_row_tokens: int | None = None,
    counts_mapped: bool = False,
) -> Placement:
    """The fastest layout of a job that `device` has memory for; where none fits, the smallest one, and that it doesn't.

    The trainer, which has loaded the base, says how much stays (`loaded_bytes`); it is not reckoned then. It also knows
    whether it has a limit of its own that counts what is mapped and never touched (`counts_mapped`).
    """
    ladder = _ladder(device, work.lengths.longest, most_row_tokens)
    rows = {tokens: _rows(spec, work, tokens) for tokens in ladder}
    placements = []
    for plan in _candidate_plans(entry, spec, ladder):
        row = rows[plan.row_tokens]
        formula = memory(entry, spec, plan, device.kind, row.largest, work.attended, row.densest)
        correction = Correction.of(measurements, plan, formula.working, work.tokens)
        needed = _corrected(formula, correction, loaded_bytes)
        if counts_mapped:
            needed = replace(needed, kernels=needed.kernels + _mapped_in_vain(row))
        placements.append(_placement(entry, spec, work, device, correction, plan, formula, needed, row))
    fitting = [each for each in placements if each.fits]
    if fitting:
        return _smallest_of_the_fastest(entry, device, fitting)
    return min(placements, key=lambda each: (each.memory.total, each.memory.activations))


def _smallest_of_the_fastest(entry: CatalogEntry, device: Device, placements: Sequence[Placement]) -> Placement:
    costs = {each.plan: cost(entry, each.plan, device.kind, each.plan.row_tokens) for each in placements}
    bound = (1 + LEVEL) * min(costs.values())
    level = (each for each in placements if costs[each.plan] <= bound)
    return min(level, key=lambda each: (each.memory.total, costs[each.plan]))


def _ladder(device: Device, longest: int, most_row_tokens: int | None) -> list[int]:
    """A row shorter than the longest document would be that document's own row."""
    top = most_row_tokens or ROW_LADDER[device.kind][0]
    return sorted({max(longest, min(top, tokens)) for tokens in ROW_LADDER[device.kind]}, reverse=True)


def _rows(spec: JobSpec, work: Work, row_tokens: int) -> _Rows:
    largest = largest_row(work.lengths, spec.hyperparameters, spec.seed, row_tokens)[1]
    mean = mean_row(work.lengths, spec.hyperparameters, spec.seed, row_tokens)
    densest = most_attended(work.lengths, spec.hyperparameters, spec.seed, row_tokens, LONGEST_IN_BLOCKS)
    return _Rows(largest, mean, work.tokens / max(1.0, mean), densest // max(1, largest))


def _mapped_in_vain(rows: _Rows) -> int:
    return int(MAPPED_IN_VAIN_BYTES * min(MOST_ROWS_KEPT, rows.count))


def _candidate_plans(entry: CatalogEntry, spec: JobSpec, ladder: Sequence[int]) -> Iterator[ExecutionPlan]:
    """Every layout worth trying."""
    is_4_bit = spec.quantization is not None and spec.quantization.bits == 4
    caches = (True, False) if is_4_bit else (False,)
    for row_tokens in ladder:
        for cache in caches:
            yield ExecutionPlan(row_tokens=row_tokens, cache_weights=cache)
            yield ExecutionPlan(row_tokens=row_tokens, cache_weights=cache, recompute="elementwise")
            for count in range(1, entry.decoder_layers):
                yield ExecutionPlan(
                    row_tokens=row_tokens, cache_weights=cache, recompute="layers", recompute_layers=count
                )
            yield ExecutionPlan(row_tokens=row_tokens, cache_weights=cache, recompute="everything")


def _corrected(predicted: Memory, correction: Correction, loaded_bytes: int | None) -> Memory:
    """What the trainer found loaded is without the cache, which it makes afterwards."""
    if loaded_bytes is None:
        return predicted.scaled(correction.loaded, correction.working)
    corrected = predicted.scaled(loaded_bytes / (predicted.loaded - predicted.cache), correction.working)
    return replace(corrected, cache=predicted.cache)


def _placement(
    entry: CatalogEntry,
    spec: JobSpec,
    work: Work,
    device: Device,
    correction: Correction,
    plan: ExecutionPlan,
    formula: Memory,
    needed: Memory,
    rows: _Rows,
) -> Placement:
    per_token = step_flop(entry, spec, work, plan, device.kind, max(1.0, rows.mean))
    flop = per_token * (work.tokens + rows.largest)  # the largest row is tried once before the first step
    flop += validation_flop(entry, spec, work, plan, device.kind) * work.validated_tokens
    other = correction.other_seconds
    other = START_SECONDS + needed.base / BASE_BYTES_PER_SECOND if other is None else other
    return Placement(
        device=device,
        fits=needed.total <= HEADROOM * device.memory_bytes,
        plan=plan,
        memory=needed,
        formula=formula,
        largest_row=rows.largest,
        step_flop=per_token,
        seconds=other + flop / (correction.flops or device.guessed_flops),
        basis="measured" if correction.jobs else "formula",
    )


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
