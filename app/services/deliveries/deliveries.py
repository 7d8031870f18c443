"""Use cases of deliveries, which worker.deliveries carries out. The caller owns the transaction."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.deliveries import deliveries
from app.db.deliveries.deliveries import IS_AT_TARGET
from app.db.operations.status import refuse_in_copy
from app.db.tables import Checkpoint, Delivery, DeliveryTarget, Job
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest
from app.services.deliveries import targets
from app.services.jobs.records import lock_files, select_checkpoint
from app.telemetry.tracing import link_to


def create(session: Session, job: Job, target_name: str, checkpoint_name: str | None) -> Delivery:
    """Deliver the job's result, or a checkpoint by its id or model; again if it was delivered there before.

    Raises BadRequest.
    """
    refuse_in_copy(session, "delivers no adapters")
    (target,) = targets.resolve(session, job.project_id, [target_name], param="target")
    checkpoint = select_checkpoint(session, job, checkpoint_name, "deliver")
    _refuse_deleted_model(session, job, checkpoint)
    lock_files(session, checkpoint, "deliver")
    _refuse_other_name(session, target, checkpoint)
    link_to(job.traceparent)
    return deliveries.create(session, job, checkpoint, target)


def _refuse_deleted_model(session: Session, job: Job, checkpoint: Checkpoint) -> None:
    """A deleted model must not be served again. A checkpoint of an unfinished job has no model yet."""
    if job.fine_tuned_model is not None and not models.lock_tuned(session, job.project_id, checkpoint.name):
        text = f"checkpoint: the model {as_json(checkpoint.name)} was deleted, so it cannot be delivered"
        raise BadRequest(text, "checkpoint", "adapter_deleted")


def _refuse_other_name(session: Session, target: DeliveryTarget, checkpoint: Checkpoint) -> None:
    """The target has the adapter under a name from which it could not be withdrawn after this delivery."""
    name = target.served_model or checkpoint.name
    of_adapter = (Delivery.target_id == target.id) & (Delivery.model == checkpoint.name) & IS_AT_TARGET
    if there := session.scalar(select(Delivery.served_model).where(of_adapter, Delivery.served_model != name)):
        text = f"target: {target.name} has this adapter as {as_json(there)}; withdraw it before it gets another name"
        raise BadRequest(text, "target")
