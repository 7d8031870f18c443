"""What an attempt is given, and what the one before it left: where each run goes on, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.artifacts import ManifestMismatch
from app.domain.events import Message
from app.domain.snapshots import candidates, going_on
from app.domain.spec import RunSpec, TrainerSpec
from worker.trainer.checkpoint import step_directory
from worker.trainer.consistent_cut import abreast
from worker.trainer.emit import Ledger
from worker.trainer.failures import Failure
from worker.trainer.identity import identity_of
from worker.trainer.snapshot import Choices, Snapshot, open_newest, open_snapshot
from worker.trainer.stop import Stops


@dataclass(frozen=True)
class Attempt:
    """What is to be trained, where its files are, who hears of it, and who may stop it."""

    spec: TrainerSpec
    workdir: Path
    say: Ledger
    stops: Stops

    def unfinished(self) -> Iterator[RunSpec]:
        return (each for each in self.spec.runs if each.run_id not in self.say.endings)

    def identity(self, run_spec: RunSpec) -> dict[str, Any]:
        return identity_of(run_spec, self.spec.base, self.spec.quantization)


@dataclass(frozen=True)
class Earlier:
    """What an attempt before this one left: snapshots by run, and what was decided."""

    snapshots: dict[str, Snapshot]
    choices: Choices | None


def open_earlier(attempt: Attempt) -> Earlier:
    """Open each run's newest whole snapshot; what is wrong with a newer one is said, or ends that run."""
    snapshots = _open_snapshots(attempt)
    return Earlier(snapshots, _decided(snapshots, attempt.say))


def _open_snapshots(attempt: Attempt) -> dict[str, Snapshot]:
    snapshots, say = {}, attempt.say
    for run_spec in attempt.spec.runs:
        if run_spec.resume_from is not None:
            with say.blaming(run_spec):
                found, problems = open_newest(
                    attempt.workdir / run_spec.resume_from, attempt.identity(run_spec), attempt.spec.base.directory
                )
                if problems or found is None:  # `Started` says where a whole one leads to
                    level, text = going_on(found.step if found else None, problems)
                    say(Message(run_id=run_spec.run_id, level=level, message=text))
                if found:
                    snapshots[run_spec.run_id] = found
    going = {each.run_id: each for each in attempt.unfinished()}
    for message in abreast(snapshots, going.keys(), lambda run_id, step: _open_earlier(attempt, going[run_id], step)):
        say(message)
    return snapshots


def _open_earlier(attempt: Attempt, run_spec: RunSpec, step: int) -> Snapshot | None:
    """None where there is no whole one of that step, or where one was named."""
    if run_spec.resume_from is None or candidates(directory := attempt.workdir / run_spec.resume_from) is None:
        return None
    try:
        base = attempt.spec.base.directory
        return open_snapshot(step_directory(directory, step), attempt.identity(run_spec), base)
    except (ManifestMismatch, Failure):
        return None


def _decided(snapshots: Mapping[str, Snapshot], say: Ledger) -> Choices | None:
    """What is decided stays decided. Runs share a base, so the first one's choices hold for all that go on with it."""
    earlier = next((snapshot.choices for snapshot in snapshots.values()), None)
    for run_id, snapshot in snapshots.items():
        if snapshot.choices != earlier:
            text = (
                f"Going on from {snapshot.name} with the choices of another run: equal within rounding, not to the bit."
            )
            say(Message(run_id=run_id, level="warn", message=text))
    return earlier
