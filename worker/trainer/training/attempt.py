"""One attempt to train the run, and what its stages return (run.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.datasets.render import Renderer
from app.domain.jobs.events import resume_message
from app.domain.jobs.spec import TrainerSpec
from app.domain.planning.execution_plan import ExecutionPlan
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.objective import Objective
from worker.trainer.runtime.process import StopRequests
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.snapshot import LoadedSnapshot, identity_of, open_newest
from worker.trainer.training.state import Run


@dataclass(frozen=True)
class TrainingAttempt:
    spec: TrainerSpec
    workdir: Path
    emit: RecordWriter
    stops: StopRequests

    @property
    def identity(self) -> dict[str, Any]:
        """Return the values that a snapshot and the run that resumes from it must share."""
        return identity_of(self.spec.run, self.spec.base, self.spec.quantization)

    def name_of(self, directory: Path) -> str:
        """Return the path of a directory below the work directory, as records have it."""
        return directory.relative_to(self.workdir).as_posix()

    def open_snapshot(self) -> LoadedSnapshot | None:
        """Open the newest valid snapshot of an earlier attempt, if any; report damaged newer ones. Raises Failure."""
        resume_from = self.spec.run.resume_from
        if resume_from is None:
            return None
        snapshot, problems = open_newest(self.workdir / resume_from, self.identity)
        if problems or snapshot is None:  # otherwise `Started` with its `start_step` is enough
            level, text = resume_message(snapshot.step if snapshot else None, problems)
            self.emit.message(text, level)
        return snapshot


@dataclass(frozen=True)
class Loaded:
    base: FrozenBase
    renderer: Renderer
    plan: ExecutionPlan  # in a first attempt without its memory layout
    snapshot: LoadedSnapshot | None  # from which the run resumes


@dataclass(frozen=True)
class Prepared:
    run: Run  # before its next step
    objective: Objective
