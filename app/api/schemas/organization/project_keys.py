"""Bodies of API keys for admins, in OpenAI's shape; scopes, rotation and status are extensions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import Body, ListBody, UnixTime
from app.api.schemas.jobs.requests import Strict
from app.domain.access.scopes import ALL, SCOPES
from app.services.access import keys

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


class KeyList(ListBody):
    data: list[KeyBody]


class KeyRevoked(Body):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True
