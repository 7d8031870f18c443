"""Bodies of encrypted secrets, for admins. They never contain a secret or a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body
from app.db import encryption
from app.db.encryption import Protection
from app.services.operations.secrets import Rotation, SecretView


class EncryptionKeyBody(Body):
    fingerprint: str
    encrypts: bool
    protects: int


class SecretBody(Body):
    object: Literal["organization.secret"]
    kind: Literal["delivery_target", "webhook_endpoint"]
    id: str
    name: str
    project_id: str | None
    protection: Protection
    key: str | None


class SecretList(Body):
    object: Literal["list"]
    data: list[SecretBody]
    keys: list[EncryptionKeyBody]


class RotationBody(Body):
    object: Literal["organization.secret_rotation"]
    rotated: int
    remaining: Annotated[int, Field(description="How many another call re-encrypts; 0: the change is complete.")]
    lost: int


def render_secrets(views: Sequence[SecretView], keys: Sequence[str]) -> dict[str, Any]:
    fingerprints = [encryption.fingerprint(key) for key in keys]
    return {
        "object": "list",
        "data": [{"object": "organization.secret"} | vars(view) for view in views],
        "keys": [
            {
                "fingerprint": each,
                "encrypts": number == 0,
                "protects": sum(view.key == each for view in views),
            }
            for number, each in enumerate(fingerprints)
        ],
    }


def render_rotation(rotation: Rotation) -> dict[str, Any]:
    return {"object": "organization.secret_rotation"} | vars(rotation)
