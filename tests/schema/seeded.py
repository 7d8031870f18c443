"""The objects that the generated requests use: files, jobs in every state, checkpoints, models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from app.db.engine import Sessions, transaction
from app.db.ids import new_id
from app.db.jobs import claims, jobs
from app.db.tables import Job, Project
from app.domain.jobs.states import Reason
from app.services.access import keys
from app.storage import LocalStorage
from tests import factories

COPIES = 3  # of each kind, as the requests delete or cancel some


@dataclass
class Seeded:
    """Existing ids by the name of the path parameter."""

    key: str = ""
    ids: dict[str, list[str]] = field(default_factory=dict)
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)  # path -> parameter and its only id

    def add_ids(self, parameter: str, *values: str) -> None:
        self.ids.setdefault(parameter, []).extend(values)

    def set_owner(self, path: str, parameter: str, owner: str) -> None:
        """All objects of `path` belong to `owner`, the value of `parameter`."""
        self.owners[path] = (parameter, owner)


def seed(sessions: Sessions, storage: LocalStorage, directory: Path) -> Seeded:
    seeded = Seeded()
    with transaction(sessions) as session:
        project = factories.make_project(session)
        seeded.key = keys.issue(session, project, "generated requests", keys.ADMIN_SCOPES).secret
        factories.make_base_model(session, directory / factories.BASE_MODEL)
        seeded.add_ids("model", factories.BASE_MODEL)
        for _ in range(COPIES):
            _files(session, storage, project, seeded)
            _add_jobs(seeded, _claimed_jobs(session, storage, project))
        for _ in range(COPIES):
            _add_jobs(seeded, [_queued(session, storage, project)])
        for _ in range(COPIES):
            file = factories.make_file(session, storage, project)
            _add_jobs(seeded, [factories.make_job(session, project, file)])
    return seeded


def _add_jobs(seeded: Seeded, new_jobs: list[Job]) -> None:
    for job in new_jobs:
        seeded.add_ids("job_id", job.id)
        if job.fine_tuned_model:
            seeded.add_ids("model", job.fine_tuned_model)


def _files(session: Session, storage: LocalStorage, project: Project, seeded: Seeded) -> None:
    for purpose in ("fine-tune", "user_data"):
        seeded.add_ids("file_id", factories.make_file(session, storage, project, purpose=purpose).id)


def _claimed_jobs(session: Session, storage: LocalStorage, project: Project) -> list[Job]:
    """A job in each state that follows a claim. No other job may be queued meanwhile, or a claim would take it."""
    return [
        factories.make_succeeded_job(session, storage, project, suffix="seeded", metadata={"k": "v"}),
        factories.make_failed_job(session, storage, project),
        _cancelled(session, storage, project),
        _paused(session, storage, project),
        _running(session, storage, project),
    ]


def _queued(session: Session, storage: LocalStorage, project: Project) -> Job:
    factories.make_job(session, project, factories.make_file(session, storage, project))
    return factories.validate_job(session)


def _running(session: Session, storage: LocalStorage, project: Project) -> Job:
    _queued(session, storage, project)
    job = factories.start_job(session, owner=new_id("worker"))
    factories.append_step_event(session, job, 1, 3)
    factories.make_checkpoint(session, storage, project, job, 1)
    return job


def _paused(session: Session, storage: LocalStorage, project: Project) -> Job:
    job = _running(session, storage, project)
    jobs.pause(session, project.id, job.id)
    return claims.finish_held_attempt(session, factories.lease_of(job), Reason.PAUSED, "The job is paused")


def _cancelled(session: Session, storage: LocalStorage, project: Project) -> Job:
    job = _queued(session, storage, project)
    cancelled = jobs.cancel(session, project.id, job.id)
    assert cancelled is not None
    return cancelled
