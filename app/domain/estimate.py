"""What a job will need, before it runs: steps, memory and time on each kind of device, and how it would be laid out.

One function for the API, the command line and the trainer. It reckons from shapes (app.domain.memory) and corrects
itself by what earlier jobs of the same kind measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.domain.catalog import CatalogEntry
from app.domain.layout import Lengths, largest_row, total_steps, trained_tokens
from app.domain.memory import DeviceKind, Memory, memory
from app.domain.modes import Measurement, Mode
from app.domain.spec import JobSpec

# The lengths of a row that are tried. Longer rows share the cost of launching and dequantising among more tokens: on a
# CPU, 2,048 were seen to be hardly faster than 1,024, and take 0.6 GB more for a model of 135M.
ROW_LADDER: dict[DeviceKind, tuple[int, ...]] = {
    "cpu": (1024, 768, 512, 256, 128),
    "cuda": (8192, 6144, 4096, 3072, 2048, 1024, 512),
}
# A row costs as much as its tokens and so many more: launches of some hundred operators a layer (cpu: rows of 400
# tokens were seen to take 1.2 times as long a token as rows of 1,519); dequantising every weight twice, 11 % of a step
# at 2,048 tokens on an H100, 3 % at 1,519 on two cores.
LAUNCH_TOKENS: dict[DeviceKind, int] = {"cpu": 100, "cuda": 400}
DEQUANTISE_TOKENS: dict[DeviceKind, int] = {"cpu": 50, "cuda": 250}
RECOMPUTE_COST = 0.45  # of a step, when every layer runs its forward again: 2 of 4 N FLOP, without the head's
# Norms and activations made again: a few passes over what a layer keeps. On a CPU they are lost beside its products.
ELEMENTWISE_COST: dict[DeviceKind, float] = {"cpu": 0.01, "cuda": 0.03}
LEVEL = 0.012  # layouts that differ by less in time are equally fast: the smallest of them is taken
HEADROOM = 0.97  # of the memory there is; what a fresh process cannot foresee
START_SECONDS = 10.0  # imports, and reading the base
BASE_BYTES_PER_SECOND = 1e9
CORE_FLOPS = 2e11  # bfloat16 of one core with AVX-512; with AMX five times that, which the first measurement tells
CUDA_FLOPS = 1e14  # of a card that is not in the table
# Dense bfloat16 (T4: float16) peaks of the data sheets; trained at two fifths of it until something was measured.
PEAK_FLOPS = {"H200": 9.9e14, "H100": 9.9e14, "A100": 3.1e14, "4090": 1.65e14, "L4": 1.2e14, "A10": 7e13, "T4": 6.5e13}
REACHED = 0.4


@dataclass(frozen=True)
class Device:
    """A place to train at, as a worker describes it, or as the trainer finds it."""

    kind: DeviceKind
    name: str
    memory_bytes: int  # of the card; on a CPU what the process may use
    cores: int = 1


@dataclass(frozen=True)
class Correction:
    """Medians over earlier jobs: measured / predicted memory, tokens per second, seconds beside the steps."""

    loaded: float = 1.0
    working: float = 1.0
    tokens_per_second: float | None = None
    other_seconds: float | None = None
    jobs: int = 0

    @classmethod
    def of(cls, measurements: Sequence[Measurement], mode: Mode) -> Correction:
        """From jobs with the same device, base and quantization. Memory falls back on those laid out otherwise, as the
        formula errs alike in all; a speed does not carry over."""
        alike = [each for each in measurements if each.is_like(mode)]
        rates = [each.tokens_per_second for each in alike if each.tokens_per_second]
        others = [each.other_seconds for each in measurements if each.other_seconds is not None]
        of_memory = alike or measurements
        return cls(
            loaded=statistics.median([each.loaded_ratio for each in of_memory] or [1.0]),
            working=statistics.median([each.working_ratio for each in of_memory] or [1.0]),
            tokens_per_second=statistics.median(rates) if rates else None,
            other_seconds=statistics.median(others) if others else None,
            jobs=len(alike),
        )


@dataclass(frozen=True)
class Placement:
    """A job on one device, in the fastest layout that fits, or the smallest there is."""

    device: Device
    fits: bool
    mode: Mode
    memory: Memory
    largest_row: int  # tokens
    seconds: float
    basis: Literal["formula", "measured"]

    @property
    def message(self) -> str:
        need, have = _gigabytes(self.memory.total), _gigabytes(self.device.memory_bytes)
        if self.fits:
            return f"Fits {self.device.name}: {need} of {have}, with {self.mode}."
        return (
            f"Does not fit {self.device.name}: it needs {need} of {have} even with {self.mode}. "
            "Lower hyperparameters.context_length first, then lora.r; without quantization, ask for 4 bits."
        )


@dataclass(frozen=True)
class Work:
    """What the data set makes of the job."""

    steps: int
    tokens: int  # that go through the model until the last step
    lengths: Lengths

    @classmethod
    def of(cls, spec: JobSpec, lengths: Lengths) -> Work:
        knobs = spec.hyperparameters
        steps = total_steps(knobs, len(lengths))
        return cls(steps, trained_tokens(lengths, knobs, spec.seed) if len(lengths) else 0, lengths)


def place(
    entry: CatalogEntry,
    spec: JobSpec,
    work: Work,
    device: Device,
    measurements: Sequence[Measurement] = (),
    loaded_bytes: int | None = None,
    most_row_tokens: int | None = None,
) -> Placement:
    """The fastest layout of a job that `device` has memory for; where none fits, the smallest one, and that it doesn't.

    The trainer, which has loaded the base, says how much stays (`loaded_bytes`); it is not reckoned then.
    """
    knobs, ladder = spec.hyperparameters, _ladder(device, work.lengths.longest, most_row_tokens)
    rows = {tokens: largest_row(work.lengths, knobs, spec.seed, tokens)[1] for tokens in ladder}
    placements = []
    for mode in _modes(entry, spec, ladder):
        correction = Correction.of(measurements, mode)
        needed = memory(entry, spec, mode, device.kind, rows[mode.row_tokens], work.lengths.attended)
        needed = _corrected(needed, correction, loaded_bytes)
        placements.append(_placement(entry, work, device, correction, mode, needed, rows[mode.row_tokens]))
    fitting = [each for each in placements if each.fits]
    if fitting:
        return _smallest_of_the_fastest(entry, device, fitting)
    return min(placements, key=lambda each: (each.memory.total, each.memory.activations))


def _smallest_of_the_fastest(entry: CatalogEntry, device: Device, placements: Sequence[Placement]) -> Placement:
    costs = {each.mode: _cost(entry, each.mode, device) for each in placements}
    bound = (1 + LEVEL) * min(costs.values())
    level = (each for each in placements if costs[each.mode] <= bound)
    return min(level, key=lambda each: (each.memory.total, costs[each.mode]))


def _ladder(device: Device, longest: int, most_row_tokens: int | None) -> list[int]:
    """A row shorter than the longest document would be that document's own row."""
    top = most_row_tokens or ROW_LADDER[device.kind][0]
    return sorted({max(longest, min(top, tokens)) for tokens in ROW_LADDER[device.kind]}, reverse=True)


def _modes(entry: CatalogEntry, spec: JobSpec, ladder: Sequence[int]) -> Iterator[Mode]:
    """Every layout worth trying."""
    is_4_bit = spec.quantization is not None and spec.quantization.bits == 4
    caches = (True, False) if is_4_bit else (False,)
    for row_tokens in ladder:
        for cache in caches:
            yield Mode(row_tokens=row_tokens, cache_weights=cache)
            yield Mode(row_tokens=row_tokens, cache_weights=cache, recompute="elementwise")
            for count in range(1, entry.decoder_layers):
                yield Mode(row_tokens=row_tokens, cache_weights=cache, recompute="layers", recompute_layers=count)
            yield Mode(row_tokens=row_tokens, cache_weights=cache, recompute="everything")


def _cost(entry: CatalogEntry, mode: Mode, device: Device) -> float:
    """Time of a token, as a multiple of that in an endless row with nothing recomputed."""
    extra = LAUNCH_TOKENS[device.kind] + (0 if mode.cache_weights else DEQUANTISE_TOKENS[device.kind])
    layers, elementwise = max(1, entry.decoder_layers), ELEMENTWISE_COST[device.kind]
    again = {
        "nothing": 0.0,
        "elementwise": elementwise,
        "layers": elementwise + (RECOMPUTE_COST - elementwise) * mode.recompute_layers / layers,
        "everything": RECOMPUTE_COST,
    }[mode.recompute]
    return (1 + again) * (1 + extra / mode.row_tokens)


def _corrected(predicted: Memory, correction: Correction, loaded_bytes: int | None) -> Memory:
    """What the trainer found loaded is without the cache, which it makes afterwards."""
    if loaded_bytes is None:
        return predicted.scaled(correction.loaded, correction.working)
    corrected = predicted.scaled(loaded_bytes / (predicted.loaded - predicted.cache), correction.working)
    return replace(corrected, cache=predicted.cache)


def _placement(
    entry: CatalogEntry, work: Work, device: Device, correction: Correction, mode: Mode, needed: Memory, row: int
) -> Placement:
    fits = needed.total <= HEADROOM * device.memory_bytes
    rate = correction.tokens_per_second or _tokens_per_second(entry, mode, device)
    other = correction.other_seconds
    other = START_SECONDS + needed.base / BASE_BYTES_PER_SECOND if other is None else other
    basis: Literal["formula", "measured"] = "measured" if correction.jobs else "formula"
    return Placement(device, fits, mode, needed, row, other + work.tokens / rate, basis)


def _tokens_per_second(entry: CatalogEntry, mode: Mode, device: Device) -> float:
    """4 N FLOP a token: the forward, and in the backward the inputs' gradient but no weight's."""
    head = entry.vocab_size * entry.hidden_size
    flops = 4 * (entry.linear_parameters + head) * _cost(entry, mode, device)
    return REACHED * _peak_flops(device) / max(1.0, flops)


def _peak_flops(device: Device) -> float:
    if device.kind == "cpu":
        return device.cores * CORE_FLOPS
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device.name), CUDA_FLOPS)


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
