"""The harness of the worker's tests: create jobs, run them with a fake trainer, read the results."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints, claims, events, jobs
from app.db.tables import Attempt, Checkpoint, File, Job, JobEvent, Project, Snapshot
from app.storage import ArchiveMember, open_archive
from tests.deadline import until
from tests.factories import make_file, make_job, reap_expired, validate_job
from tests.worker.fake_trainer import TrainerPlan
from worker.jobs.supervisor import JobSupervisor
from worker.node.resources import Resources

OWNER = "gpu0@test#1"


@dataclass
class WorkerHarness:
    """Creates jobs, runs them with a fake trainer, and reads the results."""

    resources: Resources
    project: Project
    trainer_lock: Path
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def sessions(self) -> Sessions:
        return self.resources.sessions

    def create_queued_job(self, content: bytes | None = None, **request: Any) -> Job:
        job = self.create_job(content, **request)
        with transaction(self.sessions) as session:
            return validate_job(session) and session.get_one(Job, job.id)

    def create_job(self, content: bytes | None = None, validation: bytes | None = None, **request: Any) -> Job:
        with transaction(self.sessions) as session:
            training_file = make_file(session, self.resources.storage, self.project, content)
            if validation is not None:
                request["validation_file"] = make_file(session, self.resources.storage, self.project, validation)
            return make_job(session, self.project, training_file, **request)

    def supervisor(self, plan: TrainerPlan, owner: str = OWNER) -> JobSupervisor:
        return JobSupervisor(self.resources, owner, self.trainer_lock, plan.command())

    def run_next_job(self, plan: TrainerPlan, owner: str = OWNER) -> bool:
        """Run one job to its end, in this thread."""
        return self.supervisor(plan, owner).run_next()

    def start_next_job(self, plan: TrainerPlan, owner: str = OWNER) -> threading.Thread:
        return self.start_supervisor(self.supervisor(plan, owner))

    def start_supervisor(self, supervisor: JobSupervisor) -> threading.Thread:
        thread = threading.Thread(target=supervisor.run_next)
        thread.start()
        self.threads.append(thread)
        return thread

    def job(self, job: Job) -> Job:
        with transaction(self.sessions) as session:
            return session.get_one(Job, job.id)

    def events(self, job: Job) -> list[JobEvent]:
        """Oldest first."""
        with transaction(self.sessions) as session:
            return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.seq)))

    def attempts(self, job: Job) -> list[Attempt]:
        with transaction(self.sessions) as session:
            return list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)))

    def snapshots(self, job: Job) -> list[Snapshot]:
        with transaction(self.sessions) as session:
            return checkpoints.snapshots(session, job.id)

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        """The job's result first, then latest first."""
        with transaction(self.sessions) as session:
            result = session.get_one(Job, job.id).fine_tuned_model
            return sorted(checkpoints.kept(session, job.id), key=lambda each: each.name != result)

    def file(self, file_id: str) -> File:
        with transaction(self.sessions) as session:
            return session.get_one(File, file_id)

    def content(self, file_id: str) -> bytes:
        file, storage = self.file(file_id), self.resources.storage
        members = [ArchiveMember(each["name"], each["key"], each["bytes"]) for each in file.archive_members or ()]
        with open_archive(storage, members) if members else storage.open(file.storage_key) as opened:
            return opened.read()

    def stored_files(self, kind: str = "") -> list[Path]:
        """The files of jobs in storage, of one kind if given."""
        objects = self.resources.settings.storage_dir / "objects" / "jobs"
        return [path for path in objects.rglob("*") if path.is_file() and kind in path.relative_to(objects).as_posix()]

    def messages(self, job: Job, type: str = "message") -> list[str]:
        return [event.message for event in self.events(job) if event.type == type]

    def metrics(self, job: Job) -> list[dict[str, Any]]:
        with transaction(self.sessions) as session:
            return events.all_metrics(session, job.id)

    def cancel(self, job: Job) -> None:
        with transaction(self.sessions) as session:
            assert jobs.cancel(session, self.project.id, job.id) is not None

    def pause(self, job: Job) -> None:
        with transaction(self.sessions) as session:
            assert jobs.pause(session, job.project_id, job.id) is not None

    def resume(self, job: Job) -> None:
        with transaction(self.sessions) as session:
            assert jobs.resume(session, job.project_id, job.id) is not None

    def reap_expired(self) -> int:
        """End the attempts whose leases have expired; returns their number."""
        with transaction(self.sessions) as session:
            return len(reap_expired(session))

    def has_reached(self, job: Job, step: int) -> bool:
        progress = self.job(job).progress
        return progress is not None and progress["step"] >= step

    def claim(self, owner: str = OWNER, ttl_seconds: float = 300.0) -> Job:
        """Claim the next job. Claims skip locked rows, and another holder may lock the row, so it is retried."""

        def claim() -> Job | None:
            with transaction(self.sessions) as session:
                return claims.claim(session, "train", owner, ttl_seconds)

        job: Job = until(claim, "a claim")
        return job


@dataclass(frozen=True)
class StepLog:
    """The log that a fake trainer writes: one line per step, in order."""

    path: Path

    def steps(self) -> dict[str, list[int]]:
        """The steps of each attempt."""
        steps: dict[str, list[int]] = {}
        for attempt, step, _, _ in self._lines():
            steps.setdefault(attempt, []).append(int(step))
        return steps

    def all_steps(self) -> list[int]:
        return [int(step) for _, step, _, _ in self._lines()]

    def times(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}
        for attempt, _, at, _ in self._lines():
            times.setdefault(attempt, []).append(float(at))
        return times

    def pid(self) -> int:
        """The process id of the running trainer; waits for its first step."""
        return int(until(self._lines, "a first step")[-1][3])

    def _lines(self) -> list[list[str]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
