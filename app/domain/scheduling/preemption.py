"""Which running jobs should give way to urgent ones that wait: only as many as help, and none too soon or too often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.domain.scheduling.worker_capacity import Need, Offer, fits

SOON_SECONDS = 120.0  # a job that ends within so long is waited for: stopping and resuming would cost as much


@dataclass(frozen=True)
class Policy:
    after_seconds: float  # so long an attempt runs before it is asked: the next urgent job finds it no sooner
    limit: int  # so often a job is asked at most


@dataclass(frozen=True)
class Urgent:
    job_id: str
    project_id: str
    need: Need


@dataclass(frozen=True)
class Holder:
    """A running job and the slot it has."""

    job_id: str
    project_id: str
    offer: Offer
    share: float  # of its project
    ran_seconds: float
    seconds_left: float
    priority: int = 0
    is_urgent: bool = False
    is_asked: bool = False
    is_stoppable: bool = True  # its trainer trains, and its user wants it to
    times_yielded: int = 0


def who_gives_way(
    urgent: Sequence[Urgent],
    free: Sequence[Offer],
    holders: Sequence[Holder],
    room: Mapping[str, int],
    policy: Policy,
) -> list[Holder]:
    """Whom to ask. `urgent` is in the order of the queue; `room` says how many more a limited project may run."""
    free, holders, room = list(free), list(holders), dict(room)
    asked = []
    for job in urgent:
        is_full = room.get(job.project_id, 1) <= 0
        if not is_full and (offer := next((each for each in free if fits(each, job.need)), None)):
            free.remove(offer)
        elif holder := _next_to_go(job, holders, is_full, policy):
            holders.remove(holder)
            if not (holder.is_asked or holder.seconds_left <= SOON_SECONDS):
                asked.append(holder)
        else:
            continue
        if job.project_id in room and not is_full:
            room[job.project_id] -= 1
    return asked


def _next_to_go(job: Urgent, holders: Sequence[Holder], is_full: bool, policy: Policy) -> Holder | None:
    """Who frees a slot for this job: one that does so anyway, else of the project that has had the most.

    A project that runs as many as it may gets no slot from another's job, only from one of its own.
    """
    fitting = [
        each for each in holders if fits(each.offer, job.need) and (not is_full or each.project_id == job.project_id)
    ]
    leaving = [each for each in fitting if each.is_asked or each.seconds_left <= SOON_SECONDS]
    if leaving:
        return leaving[0]
    may_be_asked = [
        each for each in fitting
        if each.is_stoppable and not each.is_urgent and each.ran_seconds >= policy.after_seconds
        and each.times_yielded < policy.limit
    ]  # fmt: skip
    return max(may_be_asked, key=lambda each: (each.share, -each.priority, each.seconds_left), default=None)
