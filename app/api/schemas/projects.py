"""Bodies of projects and API keys for admins, in OpenAI's shape; limits, usage, scopes and rotation are extensions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.api.schemas.common import Body, Deleted, ListBody, Strict, UnixTime
from app.domain.access.scopes import ALL, SCOPES
from app.domain.jobs.spec import SHARE_WEIGHT
from app.services.access import keys

MAX_BIGINT = (1 << 63) - 1
MAY_BE_URGENT = "Whether keys of the project may create `urgent` jobs, which start before those of all projects."
Seconds = Annotated[float, AfterValidator(lambda seconds: round(seconds, 3))]
Count = Annotated[int, Field(ge=0, le=MAX_BIGINT)]


class Limits(Strict):
    """Null means no limit, or the operator's default."""

    max_stored_bytes: Count | None = None
    """All files whose bytes still exist. At the limit, uploads are refused; results of jobs are stored."""
    max_queued_jobs: Count | None = None
    """Jobs that wait for a worker or for validation. At the limit, creating and resuming jobs are refused. Null: the
    operator's default.
    """
    max_running_jobs: Count | None = None
    """At the limit, further jobs stay queued even if workers are free."""
    max_gpu_seconds_per_month: Count | None = None
    """Includes the attempts of this calendar month (UTC) and the planned remainder of running jobs. At the limit,
    creating and resuming jobs are refused; running jobs continue.
    """
    max_requests_per_second: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Per API process; the requests of one second may arrive at once. Null: the operator's default."""


class CreateProject(Strict):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    """The display name."""
    limits: Limits | None = None
    """The limits of the project; an absent or null limit means no limit."""
    share_weight: Annotated[float, Field(ge=SHARE_WEIGHT.minimum, le=SHARE_WEIGHT.maximum)] = 1.0
    """Its share of the GPUs when several projects have queued jobs."""
    may_be_urgent: Annotated[bool, Field(description=MAY_BE_URGENT)] = False


class UpdateProject(Strict):
    """Absent fields keep their values; a null limit removes the limit."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """The display name."""
    limits: Limits | None = None
    """The limits to change; null removes a limit."""
    share_weight: Annotated[float, Field(ge=SHARE_WEIGHT.minimum, le=SHARE_WEIGHT.maximum)] | None = None
    """The share of the GPUs when several projects have queued jobs."""
    may_be_urgent: Annotated[bool | None, Field(description=MAY_BE_URGENT)] = None


class ArchiveProject(Strict):
    cancel_jobs: bool = False
    """Cancel unfinished jobs instead of refusing to archive."""


class UsageBody(Body):
    stored_bytes: int
    """All files whose bytes still exist, including deleted files that a job needs."""
    queued_jobs: int
    """Jobs with the status `validating_files` or `queued`."""
    running_jobs: int
    """Jobs with the status `running`."""
    gpu_seconds_this_month: Seconds
    """Used by attempts since the start of the month (UTC): duration times number of GPUs."""
    held_gpu_seconds: Seconds
    """What running jobs are still planned to use."""


class ProjectBody(Body):
    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    """The display name."""
    created_at: UnixTime
    archived_at: UnixTime | None
    """Seconds since 1970; null: the project is active."""
    status: Literal["active", "archived"]
    """`archived`: the keys are disabled; files and results are kept."""
    limits: Limits
    """The limits of the project."""
    share_weight: float
    """The share of the GPUs when several projects have queued jobs: weight 2 gets twice the time of weight 1."""
    may_be_urgent: Annotated[bool, Field(description=MAY_BE_URGENT)]


class ProjectWithUsage(ProjectBody):
    usage: UsageBody
    """The current usage."""


class OwnKey(Body):
    id: str
    scopes: list[str]
    """The permissions of the key."""


class OwnProject(ProjectWithUsage):
    """The project of a key, and the key itself."""

    api_key: OwnKey
    """The key of this request."""


class ProjectList(ListBody):
    data: list[ProjectWithUsage | ProjectBody]


def settings_of(body: CreateProject | UpdateProject) -> dict[str, int | float | None]:
    """The limits, the weight and the permission that the body sets."""
    values = body.model_dump(exclude_unset=True, exclude={"name"})
    limits: dict[str, int | float | None] = values.pop("limits", None) or {}
    return limits | {name: value for name, value in values.items() if value is not None}


Scopes = Annotated[
    list[str], Field(min_length=1, max_length=len(SCOPES), json_schema_extra={"items": {"enum": list(SCOPES)}})
]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Expiry = Annotated[int, Field(ge=keys.EXPIRY_RANGE_SECONDS[0], le=keys.EXPIRY_RANGE_SECONDS[1])]
Overlap = Annotated[
    int,
    Field(
        ge=keys.OVERLAP_RANGE_SECONDS[0],
        le=keys.OVERLAP_RANGE_SECONDS[1],
        description="How long the old secret remains valid.",
    ),
]


class CreateKey(Strict):
    name: Name
    """A label, such as the user or program that uses the key."""
    scopes: Scopes = [ALL]  # noqa: RUF012  (pydantic copies it)
    """The permissions of the key; `all` allows everything in its own project."""
    expires_in_seconds: Expiry | None = None
    """The lifetime from now on; null: the key does not expire."""


class UpdateKey(Strict):
    """Absent or null fields keep their values."""

    name: Name | None = None
    """A label, such as the user or program that uses the key."""
    scopes: Scopes | None = None
    """The permissions of the key; `all` allows everything in its own project."""
    expires_in_seconds: Expiry | None = None
    """The lifetime from now on; absent or null: unchanged."""


class RotateKey(Strict):
    overlap_seconds: Overlap = keys.DEFAULT_OVERLAP_SECONDS


class Owner(Body):
    """Keys belong to a project and have no other owner; official clients expect the object."""

    type: None = None
    """Null."""


class KeyBody(Body):
    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    project_id: str
    """The project of the key."""
    name: str
    """A label, such as the user or program that uses the key."""
    redacted_value: str = Field(validation_alias="redacted")
    """The first and last characters of the key, to recognize it by."""
    scopes: list[str]
    """The permissions of the key."""
    status: Literal["active", "expired", "revoked"]
    """Whether the key is valid, or why it is not."""
    created_at: UnixTime
    last_used_at: UnixTime | None
    """Seconds since 1970, with a precision of a minute; null: never."""
    expires_at: UnixTime | None
    """When the key expires, in seconds since 1970; null: never."""
    revoked_at: UnixTime | None
    """Seconds since 1970; null: the key was not revoked."""
    rotated_at: UnixTime | None
    """When a rotation created the current secret, in seconds since 1970; null: no rotation."""
    previous_value_expires_at: UnixTime | None = Field(validation_alias="previous_expires_at")
    """When the previous secret expires, in seconds since 1970; null: it is invalid."""
    owner: Owner = Owner()
    """Always the same."""
    owner_project_access: Literal["active", "inactive"]
    """`active` as long as the key is valid."""


class NewKey(KeyBody):
    value: str = Field(validation_alias="secret")
    """The whole key. No later response contains it."""


class KeyRevoked(Deleted):
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
