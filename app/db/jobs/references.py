"""The rows that a job request refers to, read in one statement, which is compiled once.

A statement for each row took three times the CPU, a fifth of the cost of creating a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.db.base_models.models import is_offered_to
from app.db.files import is_visible_to
from app.db.tables import BaseModelRow, DeliveryTarget, File, Project

TRAINING, VALIDATION = aliased(File), aliased(File)
DEFAULT_TARGETS = select(func.array_agg(aggregate_order_by(DeliveryTarget.name, DeliveryTarget.seq))).where(
    DeliveryTarget.project_id == Project.id, DeliveryTarget.deleted_at.is_(None), DeliveryTarget.is_default
)
LOAD_REFERENCES = (
    select(Project, BaseModelRow, TRAINING, VALIDATION, DEFAULT_TARGETS.scalar_subquery())
    .select_from(Project)
    .outerjoin(BaseModelRow, and_(BaseModelRow.name == bindparam("base"), is_offered_to(Project.id)))
    .outerjoin(TRAINING, and_(TRAINING.id == bindparam("training_file"), is_visible_to(Project.id, TRAINING)))
    .outerjoin(VALIDATION, and_(VALIDATION.id == bindparam("validation_file"), is_visible_to(Project.id, VALIDATION)))
    .where(Project.id == bindparam("project_id"))
)


@dataclass(frozen=True)
class JobReferences:
    """The rows a request refers to; None for one that does not exist or that the project may not use."""

    project: Project
    base: BaseModelRow | None
    training_file: File | None
    validation_file: File | None
    default_targets: Sequence[str] | None  # names of delivery targets


def load_job_references(
    session: Session, project_id: str, base: str, training_file: str, validation_file: str | None
) -> JobReferences:
    values = {"base": base, "training_file": training_file, "validation_file": validation_file}
    return JobReferences(*session.execute(LOAD_REFERENCES, {"project_id": project_id, **values}).one())
