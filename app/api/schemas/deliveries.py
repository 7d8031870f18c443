"""Bodies of delivery targets, and of deliveries of adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, UnixTime, unix_seconds, unix_seconds_or_none
from app.api.schemas.jobs.requests import Strict
from app.domain.deliveries.served_check import ServedCheck
from app.domain.deliveries.targets import MAX_CREDENTIAL_CHARACTERS, AnyDestination
from app.domain.jobs.create_job import Id
from app.services.deliveries.deliveries import DeliveryView

CREDENTIALS_DESCRIPTION = (
    "By kind: `api_key` of an engine; `access_key_id`, `secret_access_key` and `session_token` of S3; `token` of the "
    "hub. Stored encrypted, never returned."
)
Credential = Annotated[str, Field(min_length=1, max_length=MAX_CREDENTIAL_CHARACTERS)]
Credentials = Annotated[
    dict[str, Credential],
    Field(
        max_length=8,
        description=CREDENTIALS_DESCRIPTION,
    ),
]
ServedModelName = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=200,
        pattern="^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="One name for every adapter delivered there, each replacing the last. Default: the `ft:` name.",
    ),
]
Default = Annotated[bool, Field(description="Jobs that do not have `deliver_to` are delivered there.")]
DeliveryStatus = Literal["pending", "delivered", "failed", "withdrawing", "withdrawn"]


class CreateDeliveryTarget(Strict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    """Unique in the project."""
    destination: AnyDestination
    """Where adapters go, by `kind`."""
    credentials: Annotated[Credentials | None, Field(description=CREDENTIALS_DESCRIPTION)] = None
    served_model: ServedModelName = None
    default: Default = False


class UpdateDeliveryTarget(Strict):
    """Absent fields keep their values. What was not delivered yet is tried again at once."""

    destination: AnyDestination | None = None
    """Of the same kind."""
    credentials: Credentials | None = None
    """Replaces all credentials; {} removes them."""
    served_model: ServedModelName = None
    default: bool | None = None
    """Whether jobs without `deliver_to` are delivered there."""


class CreateDelivery(Strict):
    target: Annotated[Id, Field(description="The name of a delivery target.")]
    checkpoint: Annotated[
        Id | None, Field(description="A kept checkpoint, by its id or its model. Default: the job's result.")
    ] = None


class DeliveryTargetBody(Body):
    id: str
    object: Literal["delivery_target"] = "delivery_target"
    created_at: UnixTime
    updated_at: UnixTime
    """The last change, in seconds since 1970."""
    name: str
    """The name, unique in the project."""
    kind: Literal["directory", "vllm", "sglang", "s3", "huggingface"]
    """The kind of the destination."""
    destination: AnyDestination
    """Where adapters go."""
    credentials: list[str] = Field(validation_alias="credential_names")
    """The names of the stored credentials."""
    served_model: str | None
    """The one name for every adapter delivered there; null: the `ft:` names."""
    default: bool = Field(validation_alias="is_default")
    """Whether jobs without `deliver_to` are delivered there."""
    status: Literal["ready", "credentials_lost"]
    """`credentials_lost`: no encryption key of the service decrypts the credentials. Deliveries stay as they are, and
    continue once the key is back or the credentials are set again.
    """
    error: str | None
    """Why the credentials cannot be used, and what to do; null: they can."""


class DeliveryTargetList(ListBody):
    data: list[DeliveryTargetBody]


class DeliveryTargetDeleted(Body):
    id: str
    object: Literal["delivery_target.deleted"] = "delivery_target.deleted"
    deleted: Literal[True] = True


class DeliveryOfJob(Body):
    """A delivery as its job shows it."""

    id: str
    target: str
    status: DeliveryStatus
    model: str
    served_model: str
    check: ServedCheck | None
    error: str | None


class DeliveryBody(DeliveryOfJob):
    object: Literal["fine_tuning.job.delivery"]
    created_at: int
    updated_at: int
    fine_tuning_job_id: str
    checkpoint: str
    attempts: int
    next_attempt_at: int | None
    delivered_at: int | None
    location: dict[str, Any] | None


class DeliveryList(ListBody):
    data: list[DeliveryBody]


def render_delivery(view: DeliveryView) -> dict[str, Any]:
    delivery = view.delivery
    return {
        "id": delivery.id,
        "object": "fine_tuning.job.delivery",
        "created_at": unix_seconds(delivery.created_at),
        "updated_at": unix_seconds(delivery.updated_at),
        "fine_tuning_job_id": delivery.job_id,
        "target": view.target,
        "status": delivery.state,
        "model": delivery.model,
        "checkpoint": delivery.checkpoint_id,
        "served_model": delivery.served_model,
        "check": delivery.served_check,
        "error": delivery.error,
        "attempts": delivery.attempt,
        "next_attempt_at": unix_seconds_or_none(delivery.next_attempt_at),
        "delivered_at": unix_seconds_or_none(delivery.delivered_at),
        "location": delivery.location,
    }
