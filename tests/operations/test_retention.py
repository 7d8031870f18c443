"""Retention rules: what they delete, and that they never touch what unfinished work needs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from app.db.deliveries import deliveries
from app.db.engine import Sessions, transaction
from app.db.jobs import evaluations, exports
from app.db.operations import retention
from app.db.tables import Checkpoint, Export, File, Job, JobEvent, JobLog, Project, RetentionRule, TunedModel
from app.domain.artifacts.exports import ExportKind, ExportType
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.operations.retention import RetentionKind
from app.storage import LocalStorage
from tests.factories import make_file, make_job, make_project, make_succeeded_job, make_target

YEAR = func.clock_timestamp() - timedelta(days=365)


def age_everything(session: Session) -> None:
    """Make every file and job a year old. A trigger refuses changes of ended jobs, so triggers are off here."""
    session.execute(text("SET LOCAL session_replication_role = replica"))
    session.execute(update(File).values(created_at=YEAR))
    session.execute(update(Job).where(Job.finished_at.is_not(None)).values(finished_at=YEAR))


def apply(session: Session, project: Project, kind: RetentionKind, days: int = 90) -> retention.Due:
    session.merge(RetentionRule(project_id=project.id, kind=kind, days=days))
    session.flush()
    return retention.delete_due(session, session.get_one(RetentionRule, (project.id, kind)))


@pytest.fixture
def job(sessions: Sessions, project: Project, storage: LocalStorage, base_model: str) -> Job:
    """A year-old job with three checkpoints, the last of which is the result, and a log."""
    with transaction(sessions) as session:
        job = make_succeeded_job(session, storage, project)
        session.add(JobLog(job_id=job.id, attempt=2, project_id=project.id, text="log", cut_bytes=0))
        session.flush()
        age_everything(session)
        return job


def test_uploaded_files_are_deleted_but_not_those_of_unfinished_jobs_or_results(
    sessions: Sessions, project: Project, storage: LocalStorage, job: Job
) -> None:
    with transaction(sessions) as session:
        needed = make_file(session, storage, project)
        make_job(session, project, needed)
        other = make_file(session, storage, make_project(session, "other"))
        age_everything(session)
        recent = make_file(session, storage, project)
        assert list(apply(session, project, RetentionKind.FILES).ids) == [job.training_file_id]
    with transaction(sessions) as session:
        kept = set(session.scalars(select(File.id).where(File.deleted_at.is_(None))))
        assert {needed.id, other.id, recent.id, job.adapter_archive_file_id} <= kept
        assert job.training_file_id not in kept


def test_checkpoints_but_the_result_are_deleted_with_their_files_and_models(
    sessions: Sessions, project: Project, job: Job
) -> None:
    with transaction(sessions) as session:
        assert apply(session, project, RetentionKind.CHECKPOINTS).count == 2
    with transaction(sessions) as session:
        (kept,) = session.scalars(select(Checkpoint).where(Checkpoint.retired_at.is_(None)))
        assert kept.name == job.fine_tuned_model
        assert [
            model.checkpoint_id for model in session.scalars(select(TunedModel).where(TunedModel.deleted_at.is_(None)))
        ] == [kept.id]
        alive = set(session.scalars(select(File.id).where(File.deleted_at.is_(None))))
        assert {*kept.file_ids, kept.archive_file_id, *job.result_file_ids} <= alive


def test_a_checkpoint_from_which_an_unfinished_job_continues_is_kept(
    sessions: Sessions, project: Project, storage: LocalStorage, job: Job
) -> None:
    with transaction(sessions) as session:
        first = session.scalars(select(Checkpoint).order_by(Checkpoint.step_number)).first()
        unfinished = make_job(session, project, make_file(session, storage, project))
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            update(Job).where(Job.id == unfinished.id).values(spec=Job.spec.op("||")({"continued_from": first.name}))
        )
        session.execute(text("SET LOCAL session_replication_role = origin"))
        deleted = apply(session, project, RetentionKind.CHECKPOINTS).ids
        assert first.id not in deleted
        assert len(deleted) == 1


@pytest.mark.parametrize("work", ["export", "evaluation", "delivery"])
def test_a_checkpoint_that_unfinished_work_needs_is_kept_until_it_has_ended(
    sessions: Sessions, project: Project, job: Job, work: str
) -> None:
    with transaction(sessions) as session:
        first = session.scalars(select(Checkpoint).order_by(Checkpoint.step_number)).first()
        assert first is not None
        if work == "export":
            exports.insert(session, job, first, ExportKind(ExportType.MERGED), 1)
        elif work == "evaluation":
            evaluations.insert(session, job, first, session.get_one(File, job.training_file_id), EvaluationSettings())
        else:
            deliveries.create(session, job, first, make_target(session, project.id))
        assert first.id not in apply(session, project, RetentionKind.CHECKPOINTS).ids
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for table in ("exports", "evaluations", "deliveries"):
            session.execute(text(f"DELETE FROM {table}"))
        assert list(apply(session, project, RetentionKind.CHECKPOINTS).ids) == [first.id]


def test_logs_and_events_of_ended_jobs_are_deleted_and_the_last_event_stays(
    sessions: Sessions, project: Project, job: Job
) -> None:
    with transaction(sessions) as session:
        assert apply(session, project, RetentionKind.LOGS).size_bytes == 3
        apply(session, project, RetentionKind.EVENTS)
    with transaction(sessions) as session:
        assert session.scalars(select(JobLog)).all() == []
        assert [event.message.split()[-1] for event in session.scalars(select(JobEvent))] == ["completed"]


def test_without_rules_and_below_their_age_everything_stays(sessions: Sessions, project: Project, job: Job) -> None:
    with transaction(sessions) as session:
        assert retention.rules(session) == []
        assert [apply(session, project, kind, 400).count for kind in RetentionKind] == [0, 0, 0, 0, 0]


def test_finished_exports_are_deleted_with_their_files(
    sessions: Sessions, project: Project, storage: LocalStorage, job: Job
) -> None:
    with transaction(sessions) as session:
        checkpoint = session.scalars(select(Checkpoint)).first()
        file = make_file(session, storage, project, b"1234567", "fine-tune-results", "model.safetensors", job)
        request = {"type": "merged", "base_model": job.base_model, "adapter_file_ids": [], "expected_bytes": 7}
        names = {"project_id": project.id, "job_id": job.id, "checkpoint_id": checkpoint.id, "step_number": 1}
        done = {"state": "succeeded", "finished_at": YEAR, "manifest": {}, "file_ids": [file.id], "size_bytes": 7}
        session.add(Export(id="export_old", model="old", **request, **names, **done))
        session.add(Export(id="export_queued", model="queued", **request, **names))
        session.flush()
        assert apply(session, project, RetentionKind.EXPORTS) == retention.Due(["export_old"], 7)
    with transaction(sessions) as session:
        assert session.get_one(File, file.id).deleted_at is not None
        assert session.get_one(Export, "export_old").deleted_at is not None
        assert session.get_one(Export, "export_queued").deleted_at is None
