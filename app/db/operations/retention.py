"""Retention rules, and what is due for deletion by them. Never commits.

Only what no unfinished job, export or archive needs is due: the content of a deleted file is purged by the rules of
`files.lock_purgeable`, as after a deletion by a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, select, update
from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import exports
from app.db.jobs.jobs import ACTIVE_STATES
from app.db.tables import (
    Checkpoint,
    Delivery,
    Evaluation,
    Export,
    File,
    Job,
    JobEvent,
    JobLog,
    Project,
    RetentionRule,
    TunedModel,
)
from app.domain.deliveries.targets import DeliveryState
from app.domain.jobs.states import FINISHED_WORK, TERMINAL, UNFINISHED_WORK
from app.domain.operations.retention import RetentionKind

BATCH = 500


@dataclass(frozen=True)
class Due:
    """Rows that a rule deletes, and the bytes of their files or texts."""

    ids: Sequence[Any]
    size_bytes: int

    @property
    def count(self) -> int:
        return len(self.ids)


def rules(session: Session, project_id: str | None = None) -> list[RetentionRule]:
    """The rules of one project, or of all that are not archived."""
    query = select(RetentionRule).join(RetentionRule.project).order_by(Project.seq, RetentionRule.kind)
    return list(session.scalars(query.where(Project.id == project_id if project_id else Project.archived_at.is_(None))))


def due(session: Session, rule: RetentionRule, limit: int = BATCH) -> Due:
    """What the rule deletes now, at most `limit` rows."""
    rows = session.execute(_due_query(rule).limit(limit)).all()
    return Due([row[0] for row in rows], sum(int(row[1] or 0) for row in rows))


def delete_due(session: Session, rule: RetentionRule) -> Due:
    """Delete what is due, at most BATCH rows."""
    found = due(session, rule, BATCH)
    match RetentionKind(rule.kind):
        case RetentionKind.FILES:
            files.delete_all(session, found.ids)
        case RetentionKind.CHECKPOINTS:
            _delete_checkpoints(session, found.ids)
        case RetentionKind.LOGS:
            session.execute(delete(JobLog).where(JobLog.job_id.in_(found.ids)))
        case RetentionKind.EVENTS:
            session.execute(delete(JobEvent).where(JobEvent.id.in_(found.ids)))
        case RetentionKind.EXPORTS:
            for export in session.scalars(select(Export).where(Export.id.in_(found.ids))):
                exports.delete(session, export)
                files.delete_all(session, export.file_ids)
    return found


def _due_query(rule: RetentionRule) -> Select[Any, Any]:
    project_id, age = rule.project_id, timedelta(days=rule.days)
    match RetentionKind(rule.kind):
        case RetentionKind.FILES:
            return _due_files(project_id, age)
        case RetentionKind.CHECKPOINTS:
            return _due_checkpoints(project_id, age)
        case RetentionKind.LOGS:
            ended = select(JobLog.job_id, func.sum(func.octet_length(JobLog.text))).join(Job, Job.id == JobLog.job_id)
            return ended.where(_ended(project_id, age)).group_by(JobLog.job_id)
        case RetentionKind.EVENTS:
            size_bytes = func.octet_length(JobEvent.message) + func.pg_column_size(JobEvent.data)
            ended = select(JobEvent.id, size_bytes).join(Job, Job.id == JobEvent.job_id)
            return ended.where(_ended(project_id, age), JobEvent.seq < Job.event_seq)
        case RetentionKind.EXPORTS:
            return select(Export.id, Export.size_bytes).where(
                Export.project_id == project_id,
                Export.state.in_(FINISHED_WORK),
                Export.deleted_at.is_(None),
                Export.finished_at < func.clock_timestamp() - age,
            )


def _due_files(project_id: str, age: timedelta) -> Select[Any, Any]:
    """Uploaded files that no unfinished job or evaluation reads."""
    return select(File.id, File.bytes).where(
        File.project_id == project_id,
        File.job_id.is_(None),
        File.deleted_at.is_(None),
        File.created_at < func.clock_timestamp() - age,
        *files.unneeded_by_work(),
    )


def _due_checkpoints(project_id: str, age: timedelta) -> Select[Any, Any]:
    """Kept checkpoints that are not the result, which no unfinished job, export, evaluation or delivery needs."""
    size_bytes = select(func.sum(File.bytes)).where(
        File.job_id == Checkpoint.job_id, Checkpoint.file_ids.has_key(File.id), File.purged_at.is_(None)
    )
    continuing = Job.__table__.alias("continuing")
    continued = select(continuing.c.id).where(
        continuing.c.spec["continued_from"].astext == Checkpoint.name, continuing.c.state.in_(ACTIVE_STATES)
    )
    exported = select(Export.id).where(Export.checkpoint_id == Checkpoint.id, Export.state.in_(UNFINISHED_WORK))
    evaluated = select(Evaluation.id).where(
        Evaluation.checkpoint_id == Checkpoint.id,
        Evaluation.state.in_(UNFINISHED_WORK),
    )
    delivered = select(Delivery.id).where(
        Delivery.model == Checkpoint.name, Delivery.state != DeliveryState.WITHDRAWN.value
    )
    return (
        select(Checkpoint.id, size_bytes.correlate(Checkpoint).scalar_subquery())
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            _ended(project_id, age),
            Checkpoint.retired_at.is_(None),
            Job.fine_tuned_model.is_distinct_from(Checkpoint.name),
            ~continued.exists(),
            ~exported.exists(),
            ~evaluated.exists(),
            ~delivered.exists(),
        )
    )


def _delete_checkpoints(session: Session, checkpoint_ids: Sequence[str]) -> None:
    for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.id.in_(checkpoint_ids))):
        checkpoint.retired_at = func.clock_timestamp()
        files.delete_all(session, checkpoint.all_file_ids)
    session.execute(
        update(TunedModel)
        .where(TunedModel.checkpoint_id.in_(checkpoint_ids), TunedModel.deleted_at.is_(None))
        .values(deleted_at=func.clock_timestamp())
    )


def _ended(project_id: str, age: timedelta) -> ColumnElement[bool]:
    return and_(
        Job.project_id == project_id,
        Job.state.in_([state.value for state in TERMINAL]),
        Job.finished_at < func.clock_timestamp() - age,
    )
