"""Runs that share rows go on from one boundary: what a run becomes, to the bit, depends on who is in its rows.

A kill between two of their snapshots leaves one run ahead of the other, and so does damage to the newest of one. The
one ahead then goes back, to the snapshot that was written when the other was where it is now: a consistent cut (Chandy
and Lamport, 1985). A run that is complete trains no more, so the others may be farther than they were at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Set

from app.domain.events import Message
from worker.trainer.snapshot import Snapshot

OpenEarlier = Callable[[str, int], Snapshot | None]  # (run id, step): the whole snapshot of that step, if there is one
Pair = tuple[str, str]  # of run ids: the first one is ahead of the second


def abreast(snapshots: MutableMapping[str, Snapshot], going: Set[str], open_earlier: OpenEarlier) -> Iterator[Message]:
    """Put back the runs that are ahead, and say so; where that can't be, say that their bits will be others.

    `going` are all runs that will train; one without a snapshot begins at step 0.
    """
    apart: set[Pair] = set()
    while found := next((each for each in _ahead(snapshots, going) if each[:2] not in apart), None):
        run_id, other, step = found
        if earlier := open_earlier(run_id, step):
            yield Message(run_id=run_id, message=_goes_back(snapshots[run_id].step, step, other))
            snapshots[run_id] = earlier
        else:
            apart.add((run_id, other))
    for pair in sorted(apart):
        for run_id, other in (pair, pair[::-1]):
            text = f"Going on beside {other}, which is not where it was then: equal within rounding, not to the bit."
            yield Message(run_id=run_id, level="warn", message=text)


def _ahead(snapshots: Mapping[str, Snapshot], going: Set[str]) -> Iterator[tuple[str, str, int]]:
    """(run id, the run that it is ahead of, the step that would be abreast of that one)."""
    steps = {run_id: snapshots[run_id].step if run_id in snapshots else 0 for run_id in going}
    for run_id in sorted(going & snapshots.keys()):
        for other, then in snapshots[run_id].beside.items():
            if other in going and steps[other] < then:
                yield run_id, other, steps[run_id] - (then - steps[other])
            elif other in going and steps[other] > then and not snapshots[run_id].is_complete:
                yield other, run_id, then


def _goes_back(newest: int, step: int, other: str) -> str:
    return (
        f"Going on from the snapshot of step {step}, not of step {newest}: {other}, which shares its rows, has none as "
        "late."
    )
