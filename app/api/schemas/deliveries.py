"""Bodies of delivery targets, and of deliveries of adapters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasPath, Field

from app.api.schemas.common import Body, Deleted, JobPart, Strict, UnixTime
from app.domain.deliveries.served_check import ServedCheck
from app.domain.deliveries.targets import MAX_CREDENTIAL_CHARACTERS, AnyDestination
from app.domain.jobs.create_job import Id

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
    target: Id
    """The name of a delivery target."""
    checkpoint: Id | None = None
    """A kept checkpoint, by its id or its model. Default: the job's result."""


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


class DeliveryTargetDeleted(Deleted):
    object: Literal["delivery_target.deleted"] = "delivery_target.deleted"


class DeliveryOfJob(Body):
    """A delivery as its job shows it."""

    id: str
    target: str = Field(validation_alias=AliasPath("target", "name"))
    """The name of the delivery target."""
    status: DeliveryStatus = Field(validation_alias="state")
    """`pending` until an attempt succeeds or eleven have failed; `withdrawing` until it is removed from the target."""
    model: str
    """The `ft:` name."""
    served_model: str
    """The name under which the target has it."""
    check: ServedCheck | None = Field(validation_alias="served_check")
    """Whether an engine computes with the adapter what the trainer computed; null: not compared, as other kinds do not
    answer, and a checkpoint before the result has nothing to compare with.
    """
    error: str | None
    """Why the last attempt failed and what to do; null: it did not."""


class DeliveryBody(JobPart, DeliveryOfJob):
    object: Literal["fine_tuning.job.delivery"] = "fine_tuning.job.delivery"
    updated_at: UnixTime
    """The last change, in seconds since 1970."""
    checkpoint: str = Field(validation_alias="checkpoint_id")
    """The checkpoint whose adapter is delivered."""
    attempts: int = Field(validation_alias="attempt")
    """The number of attempts so far."""
    next_attempt_at: UnixTime | None
    """The next attempt, in seconds since 1970. Once it is `delivered`, an attempt checks that the engine still has the
    adapter. Null: none is due.
    """
    delivered_at: UnixTime | None
    """When the target first had it, in seconds since 1970; null: not yet."""
    location: dict[str, Any] | None
    """What the target has, as its kind reports it: a path, a revision, objects, with its `served_model`; `earlier` has
    the places before the target was changed; null: nothing.
    """
