"""The files of a run: its checkpoints and snapshots. Each is saved, and reported by a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from app.domain.artifacts.full_disk import RESERVED_SPACE_FILE, is_disk_full
from app.domain.jobs.events import CheckpointSaved, SnapshotSaved
from worker.trainer.checkpoint.checkpoint import save_checkpoint
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.snapshot import save_snapshot
from worker.trainer.training.attempt import TrainingAttempt
from worker.trainer.training.state import Run


@dataclass(frozen=True)
class RunFiles:
    attempt: TrainingAttempt
    base: FrozenBase
    run: Run
    policy: OutOfMemoryPolicy  # snapshots store its plan
    saved: dict[int, CheckpointSaved] = field(default_factory=dict)  # the checkpoints of this attempt, by step

    def checkpoint(self, *, final: bool) -> Path:
        """Save and report the public checkpoint of this step, unless that has been done. Returns its directory."""
        run, saved = self.run, self.saved.get(self.run.step)
        if saved is None or saved.final < final:
            directory = saved.directory if saved else self.attempt.name_of(save_checkpoint(run, self.base))
            epoch = run.schedule.epoch(run.step)
            saved = CheckpointSaved(
                run_id=run.id, step=run.step, epoch=epoch, directory=directory, final=final, metrics=run.metrics
            )
            self.saved[run.step] = saved
            self.attempt.emit(saved)
        return self.attempt.workdir / saved.directory

    @property
    def has_current_snapshot(self) -> bool:
        return (self.run.snapshot_step, self.run.snapshot_plan) == (self.run.step, self.policy.plan)

    def snapshot(self) -> None:
        """Save a snapshot. On a full disk, save it in the reserved space and raise the error, which ends the run."""
        try:
            self._save_snapshot(final=False)
        except Exception as error:
            if is_disk_full(error):
                self.last_snapshot()
            raise

    def last_snapshot(self) -> None:
        """Save the snapshot from which the next attempt resumes, in the space that the worker has reserved for it."""
        self.reserved.unlink(missing_ok=True)
        self._save_snapshot(final=True)

    @property
    def reserved(self) -> Path:
        return self.attempt.workdir / RESERVED_SPACE_FILE

    def _save_snapshot(self, *, final: bool) -> None:
        run, attempt = self.run, self.attempt
        directory, sha256 = save_snapshot(run, attempt.identity, self.policy.plan)
        attempt.emit(
            SnapshotSaved(
                run_id=run.id, step=run.step, directory=attempt.name_of(directory), manifest_sha256=sha256, final=final
            )
        )
