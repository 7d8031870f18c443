"""Simulate a week of synthetic traffic with the fair queue and with first come, first served: `make bench-queue`.

The fair queue is the service's own SQL on a real PostgreSQL with a clock of its own, so the times are of that week and
not of this machine. `--speed` measures the claim itself with 50,000 waiting jobs of 200 projects.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from app.db.scheduling import fair_queue
from app.domain.scheduling.preemption import PreemptionPolicy
from benchmarks import queue_speed
from benchmarks.traffic import GPUS, WEEK, Arrival, week
from benchmarks.virtual_time import virtual_database
from benchmarks.week import FirstComeFirstServed, Run, TheService, simulate

SIZES = (("under 15 min", 0, 900), ("15 to 60 min", 900, 3600), ("1 to 4 h", 3600, 14_400), ("over 4 h", 14_400, 1e9))
Group = tuple[str, Callable[[Run], bool]]


def main() -> None:
    options = parse()
    if options.speed:
        queue_speed.main(options.jobs)
        return
    arrivals = week(options.seed)
    work = sum(arrival.seconds for arrival in arrivals)
    print(
        f"{len(arrivals)} jobs of {work / 3600:.0f} GPU hours on {len(GPUS)} GPUs, {work / len(GPUS) / WEEK:.0%} of a "
        f"week; half-life {options.half_life_hours:g} h\n"
    )
    plain = simulate(arrivals, GPUS, FirstComeFirstServed())
    began = time.monotonic()
    fair = through_the_service(arrivals, options)
    print_waits("project", [(name, _of(name)) for name in sorted({each.project for each in arrivals})], plain, fair)
    print_waits("size", [(name, _between(low, high)) for name, low, high in SIZES], plain, fair)
    print_shares(plain, fair)
    preemptions = sum(run.attempt - 1 for run in fair)
    print(f"{preemptions} preemptions; the service's part took {time.monotonic() - began:.0f} s of real time")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-queue", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="another week (1)")
    parser.add_argument("--half-life-hours", type=float, default=24.0, help="of GPU time in the fair share (24)")
    parser.add_argument("--no-giving-way", action="store_true", help="urgent jobs wait for the next free GPU")
    parser.add_argument("--nothing-held", action="store_true", help="count a running job only as it runs")
    parser.add_argument("--speed", action="store_true", help="how long a claim takes, on this machine")
    parser.add_argument("--jobs", type=int, default=50_000, help="that wait, for --speed (50,000)")
    return parser.parse_args()


def through_the_service(arrivals: Sequence[Arrival], options: argparse.Namespace) -> list[Run]:
    if options.nothing_held:
        without_held = fair_queue.SELECT_TRAINING_JOB.replace("candidate.used + candidate.held", "candidate.used")
        fair_queue.SELECT_TRAINING_JOB = without_held
    policy = None if options.no_giving_way else PreemptionPolicy(min_run_seconds=600, max_preemptions=3)
    with virtual_database() as engine:
        return simulate(arrivals, GPUS, TheService(engine, arrivals, options.half_life_hours * 3600, policy))


def print_waits(what: str, groups: Sequence[Group], plain: Sequence[Run], fair: Sequence[Run]) -> None:
    """Minutes without a GPU, from a job's arrival to its end."""
    numbers = "".join(f"{name:>9}" for name in ("median", "p95", "p99"))
    print(f"{'minutes of waiting':32}   {'first come, first served':>27}   {'fair':>27}")
    print(f"{'  by ' + what:26}{'jobs':>6}   {numbers}   {numbers}")
    for name, is_in in groups:
        rows = [[run.wait / 60 for run in runs if is_in(run)] for runs in (plain, fair)]
        if rows[0]:
            cells = ["".join(f"{value:9.0f}" for value in summary(row)) for row in rows]
            print(f"  {name:24}{len(rows[0]):>6}   {cells[0]}   {cells[1]}")
    print()


def print_shares(plain: Sequence[Run], fair: Sequence[Run]) -> None:
    """The share of each project in the GPU time during which jobs of two or more projects were queued."""
    print(f"{'GPU time while 2+ projects wait':34}{'first come':>12}{'fair':>12}")
    shares = [contended_shares(runs) for runs in (plain, fair)]
    for name in sorted(shares[0].keys() | shares[1].keys()):
        print(f"  {name:32}" + "".join(f"{share.get(name, 0):12.0%}" for share in shares))
    print()


def contended_shares(runs: Sequence[Run]) -> dict[str, float]:
    marks = sorted({mark for run in runs for mark in _marks(run)})
    had: dict[str, float] = {}
    for start, end in pairwise(marks):
        alive = [run for run in runs if run.arrival.at <= start and (run.ended or 0) >= end]
        running = [run for run in alive if any(a <= start and b >= end for a, b in run.pieces)]
        waiting = {run.arrival.project for run in alive if run not in running}
        if len(waiting) >= 2:
            for run in running:
                had[run.arrival.project] = had.get(run.arrival.project, 0.0) + end - start
    total = sum(had.values()) or 1.0
    return {name: seconds / total for name, seconds in had.items()}


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), _quantile(ordered, 0.95), _quantile(ordered, 0.99)


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _marks(run: Run) -> list[float]:
    return [run.arrival.at, *(moment for piece in run.pieces for moment in piece)]


def _of(project: str) -> Callable[[Run], bool]:
    return lambda run: run.arrival.project == project


def _between(low: float, high: float) -> Callable[[Run], bool]:
    return lambda run: low <= run.arrival.seconds < high and not run.arrival.is_urgent


if __name__ == "__main__":
    main()
