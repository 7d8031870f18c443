"""A week of synthetic traffic: seven teams with different kinds of jobs share four GPUs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

HOUR, DAY = 3600.0, 86_400.0
WEEK = 7 * DAY
GB = 10**9
SMALL, LARGE = 24 * GB, 80 * GB
GPUS = (SMALL, SMALL, LARGE, LARGE)  # memory of each
ERROR = 0.2  # of a plan: the logarithm of actual / planned has this deviation


@dataclass(frozen=True)
class Arrival:
    at: float  # seconds since Monday, 00:00
    project: str
    planned_seconds: float
    seconds: float
    needed_bytes: int
    is_urgent: bool = False


def week(seed: int) -> list[Arrival]:
    """All jobs in order of arrival: about nine tenths of the capacity of four GPUs, in bursts."""
    dice = random.Random(seed)
    teams = (_sweeps, _research, _product, _nightly, _students, _newcomer, _incidents)
    arrivals = [arrival for team in teams for arrival in team(dice)]
    return sorted((each for each in arrivals if each.at < WEEK), key=lambda each: each.at)


def _sweeps(dice: random.Random) -> Iterator[Arrival]:
    """Grid searches: fifty-four jobs of an hour at once, from Monday to Friday."""
    for day in range(5):
        at = day * DAY + dice.uniform(8, 18) * HOUR
        for number in range(54):
            yield _job(dice, at + number, "sweeps", 1.0 * HOUR, 0.3, 12 * GB)


def _research(dice: random.Random) -> Iterator[Arrival]:
    """Three long runs a day, most of them too large for the small cards."""
    for day in range(7):
        for _ in range(3):
            at = day * DAY + dice.uniform(9, 20) * HOUR
            yield _job(dice, at, "research", 6 * HOUR, 0.5, 60 * GB if dice.random() < 0.6 else 20 * GB)


def _product(dice: random.Random) -> Iterator[Arrival]:
    """Interactive jobs of a quarter of an hour each, in office hours."""
    for day in range(5):
        for _ in range(16):
            yield _job(dice, day * DAY + dice.uniform(9, 18) * HOUR, "product", 0.25 * HOUR, 0.4, 10 * GB)


def _nightly(dice: random.Random) -> Iterator[Arrival]:
    for day in range(7):
        for number in range(8):
            yield _job(dice, day * DAY + 2 * HOUR + number, "nightly", 1.0 * HOUR, 0.2, 18 * GB)


def _students(dice: random.Random) -> Iterator[Arrival]:
    """Small ones, in the evening, twenty a day."""
    for day in range(7):
        for _ in range(20):
            at = day * DAY + min(23.5, max(16.0, dice.gauss(20, 1.5))) * HOUR
            yield _job(dice, at, "students", 0.4 * HOUR, 0.6, 8 * GB)


def _newcomer(dice: random.Random) -> Iterator[Arrival]:
    """Occasional jobs of five minutes, as for a first try."""
    for day in range(7):
        for _ in range(2):
            yield _job(dice, day * DAY + dice.uniform(8, 22) * HOUR, "newcomer", HOUR / 12, 0.3, 6 * GB)


def _incidents(dice: random.Random) -> Iterator[Arrival]:
    """Urgent, once a day."""
    for day in range(7):
        yield _job(dice, day * DAY + dice.uniform(6, 22) * HOUR, "incidents", 0.5 * HOUR, 0.2, 16 * GB, True)


def _job(
    dice: random.Random, at: float, project: str, typical: float, spread: float, needed: int, is_urgent: bool = False
) -> Arrival:
    planned = typical * math.exp(dice.gauss(0, spread))
    return Arrival(at, project, planned, planned * math.exp(dice.gauss(0, ERROR)), needed, is_urgent)
