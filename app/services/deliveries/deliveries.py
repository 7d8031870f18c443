"""Use cases of deliveries, which worker.deliveries carries out. The caller owns the transaction."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.operations.status import refuse_in_copy
from app.db.tables import Checkpoint, Delivery, Job
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest
from app.services import resources
from app.services.deliveries import targets
from app.services.jobs import jobs
from app.services.jobs.checkpoints import lock_files, select_checkpoint
from app.telemetry.tracing import link_to


def create(session: Session, project_id: str, job_id: str, target_name: str, checkpoint_name: str | None) -> Delivery:
    """Deliver the job's result, or a checkpoint by its id or model; again if it was delivered there before.

    Raises NotFound for the job, BadRequest for everything else.
    """
    job = jobs.get(session, project_id, job_id)
    refuse_in_copy(session, "delivers no adapters")
    (name,) = targets.resolve_names(session, project_id, [target_name], param="target")
    target = targets.get(session, project_id, name)
    checkpoint = select_checkpoint(session, job, checkpoint_name, "deliver")
    _refuse_deleted_model(session, job, checkpoint)
    lock_files(session, checkpoint, "deliver")
    link_to(job.traceparent)
    return deliveries.create(session, job, checkpoint, target)


def get(session: Session, project_id: str, job_id: str, delivery_id: str) -> Delivery:
    job = jobs.get(session, project_id, job_id)
    return resources.get(session, Delivery, delivery_id, Delivery.job_id == job.id, param="delivery_id")


def page(session: Session, project_id: str, job_id: str, limit: int, after: str | None) -> list[Delivery]:
    job = jobs.get(session, project_id, job_id)
    return resources.page(session, Delivery, limit, after, Delivery.job_id == job.id)


def withdraw(session: Session, project_id: str, job_id: str, delivery_id: str) -> Delivery:
    """Have the adapter removed from the target; no error if it already is."""
    delivery = get(session, project_id, job_id, delivery_id)
    deliveries.withdraw(session, delivery)
    return delivery


def _refuse_deleted_model(session: Session, job: Job, checkpoint: Checkpoint) -> None:
    """A deleted model must not be served again. A checkpoint of an unfinished job has no model yet."""
    if job.fine_tuned_model is not None and not models.lock_tuned(session, job.project_id, checkpoint.name):
        text = f"checkpoint: the model {as_json(checkpoint.name)} was deleted, so it cannot be delivered"
        raise BadRequest(text, "checkpoint", "adapter_deleted")
