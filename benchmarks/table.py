"""Measurements and their table: medians of paired runs, and each target with the measured value."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass, field

from app.system.host import cpu_flags, cpu_name
from benchmarks.workload import BATCH, Workload
from worker.node.device import list_gpus

DROPPED_STEPS = 3
COLUMNS = {"tokens/s": 10, "of bound": 10, "speed ratio": 18, "peak": 9, "ratio": 8, "loss": 9, "valid": 9, "start": 8}


@dataclass
class Measured:
    """One run of one side."""

    step_seconds: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)  # real ones
    losses: dict[int, float] = field(default_factory=dict)
    validation_loss: float | None = None
    resident_bytes: int = 0
    cuda_peak_bytes: int | None = None
    start_seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        return self.resident_bytes if self.cuda_peak_bytes is None else self.cuda_peak_bytes

    def tokens_per_second(self) -> float:
        """Without the first steps (warm-up) and the last one, in which Tunery also runs validation."""
        counted = slice(DROPPED_STEPS, len(self.step_seconds) - 1)
        return sum(self.step_tokens[counted]) / sum(self.step_seconds[counted])

    def last_losses(self) -> float:
        """The mean of the last fifth."""
        tail = sorted(self.losses)[-max(1, len(self.losses) // 5) :]
        return statistics.mean(self.losses[step] for step in tail)


def report(
    work: Workload,
    rows: dict[str, list[Measured]],
    bounds: list[float],
    best: dict,
    data: str,
    versions: str,
    absent: str | None = None,
) -> None:
    bound = statistics.median(bounds)
    ours = rows["Tunery"]
    on_cuda = work.spec.device == "cuda"
    card = f"\n{', '.join(gpu['name'] for gpu in list_gpus())}" if on_cuda else ""
    print(f"\n{machine()}{card}\n{versions}\nTRL's best: {json.dumps(best)}")
    steps = len(ours[0].step_seconds)
    print(f"{data}: {sum(work.tokens_of_step):,} tokens in {steps} steps of {BATCH} examples\n")
    print(" " * 20 + "".join(name.rjust(width) for name, width in COLUMNS.items()))
    for name, measured in rows.items():
        print(_line(name, ours, measured, bound))
    print(f"{'matrix products':20}{bound:>10,.0f}\n")
    if absent:
        print(f"{absent}\n")
    print(
        "speed ratio: Tunery's over the row's, median of the pairs (least-most); memory ratio: Tunery's over the row's."
    )
    peak = "what tensors occupied on the card at most" if on_cuda else "the process's resident set at its peak"
    print(f"peak: {peak}. loss: mean of the last fifth of the steps; valid: nats per labelled token, held-out rows.\n")
    for text in _targets(rows, on_cuda):
        print(text)


def _line(name: str, ours: list[Measured], theirs: list[Measured], bound: float) -> str:
    speed = statistics.median(run.tokens_per_second() for run in theirs)
    paired = _ratios(ours, theirs)
    spread = f"{statistics.median(paired):.2f} ({min(paired):.2f}-{max(paired):.2f})"
    valid = _validation(theirs)
    return (
        f"{name:20}{speed:>10,.0f}{speed / bound:>10.0%}{spread:>18}{gigabytes(theirs[-1].peak_bytes):>9}"
        f"{_memory(ours, theirs):>8.2f}{theirs[-1].last_losses():>9.4f}"
        f"{'' if valid is None else f'{valid:.4f}':>9}{theirs[-1].start_seconds:>7.1f}s"
    )


def _targets(rows: dict[str, list[Measured]], on_cuda: bool) -> list[str]:
    """The target of speed is that of a CPU."""
    ours, defaults, best = (rows[name] for name in ("Tunery", "TRL, its defaults", "TRL, its best"))
    loss = abs(ours[-1].last_losses() / defaults[-1].last_losses() - 1)
    valid = abs(_validation(ours) / _validation(defaults) - 1)
    speed = _target("of TRL's best speed", statistics.median(_ratios(ours, best)), 1.8, "x")
    return [
        *([] if on_cuda else [speed]),
        _target("of TRL's best's memory", _memory(ours, best), 0.45, "x", at_most=True),
        _target("training loss, difference", 100 * loss, 1.0, "%", at_most=True),
        _target("validation loss, difference", 100 * valid, 0.5, "%", at_most=True),
    ]


def _target(name: str, measured: float, target: float, unit: str, *, at_most: bool = False) -> str:
    met = measured <= target if at_most else measured >= target
    bound = f"{'at most' if at_most else 'at least'} {target:g} {unit}"
    return f"{'met   ' if met else 'MISSED'} {name}: {measured:.2f} {unit}, {bound}"


def _ratios(ours: list[Measured], theirs: list[Measured]) -> list[float]:
    return [us.tokens_per_second() / them.tokens_per_second() for us, them in zip(ours, theirs, strict=True)]


def _memory(ours: list[Measured], theirs: list[Measured]) -> float:
    return statistics.median(us.peak_bytes / them.peak_bytes for us, them in zip(ours, theirs, strict=True))


def _validation(runs: list[Measured]) -> float | None:
    return next((run.validation_loss for run in reversed(runs) if run.validation_loss is not None), None)


def machine() -> str:
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpu_flags()]
    return (
        f"{cpu_name()}, {os.cpu_count()} CPUs, {', '.join(flags) or 'no 16-bit flags'}, load {os.getloadavg()[0]:.1f}"
    )


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
