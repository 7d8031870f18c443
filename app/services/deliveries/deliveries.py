"""Use cases of deliveries, which worker.deliveries carries out. The caller owns the transaction."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.files import files
from app.db.tables import Checkpoint, Delivery, Job
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound
from app.services.deliveries import targets
from app.services.jobs import jobs
from app.services.jobs.checkpoints import select_checkpoint
from app.services.operations.copies import refuse_in_copy
from app.telemetry.tracing import link_to


@dataclass(frozen=True)
class DeliveryView:
    """A delivery with the name of its target."""

    delivery: Delivery
    target: str


def create(
    session: Session, project_id: str, job_id: str, target_name: str, checkpoint_name: str | None
) -> DeliveryView:
    """Deliver the job's result, or a checkpoint by its id or model; again if it was delivered there before.

    Raises NotFound for the job, BadRequest for everything else.
    """
    job = jobs.get(session, project_id, job_id)
    refuse_in_copy(session, "delivers no adapters")
    (name,) = targets.resolve_names(session, project_id, [target_name], param="target")
    target = targets.get(session, project_id, name)
    checkpoint = select_checkpoint(session, job, checkpoint_name, "deliver")
    _refuse_deleted_model(session, job, checkpoint)
    if files.lock_content(session, project_id, checkpoint.file_ids) < len(checkpoint.file_ids):
        text = f"Files of the adapter of {checkpoint.name} were deleted, so it cannot be delivered."
        raise BadRequest(text, "checkpoint", "adapter_deleted")
    link_to(job.traceparent)
    return DeliveryView(deliveries.create(session, job, checkpoint, target), target.name)


def get(session: Session, project_id: str, job_id: str, delivery_id: str) -> DeliveryView:
    jobs.get(session, project_id, job_id)
    found = deliveries.get(session, project_id, job_id, delivery_id)
    if found is None:
        raise NotFound(f"No such delivery of job {job_id}: {unquoted(delivery_id)}", "delivery_id")
    return DeliveryView(*found)


def page(session: Session, project_id: str, job_id: str, limit: int, after: str | None) -> list[DeliveryView]:
    jobs.get(session, project_id, job_id)
    last = deliveries.get(session, project_id, job_id, after) if after is not None else None
    if after is not None and last is None:
        raise jobs.unknown_cursor_error("delivery", after)
    return [DeliveryView(*row) for row in deliveries.page(session, job_id, limit, last[0] if last else None)]


def withdraw(session: Session, project_id: str, job_id: str, delivery_id: str) -> DeliveryView:
    """Have the adapter removed from the target; no error if it already is."""
    view = get(session, project_id, job_id, delivery_id)
    deliveries.withdraw(session, view.delivery)
    return view


def _refuse_deleted_model(session: Session, job: Job, checkpoint: Checkpoint) -> None:
    """A deleted model must not be served again. A checkpoint of an unfinished job has no model yet."""
    if job.fine_tuned_model is not None and not models.lock_tuned(session, job.project_id, checkpoint.name):
        text = f"checkpoint: the model {as_json(checkpoint.name)} was deleted, so it cannot be delivered"
        raise BadRequest(text, "checkpoint", "adapter_deleted")
