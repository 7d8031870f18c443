"""Bodies of encrypted secrets, for admins. They never contain a secret or a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from app.api.schemas.common import Body
from app.db import encryption
from app.db.encryption import Protection
from app.services.operations.secrets import Rotation, SecretView


class EncryptionKeyBody(Body):
    fingerprint: str
    """The first characters of the SHA-256 of the key."""
    encrypts: bool
    """Whether new secrets are encrypted with it: the first key."""
    protects: int
    """The number of secrets that it decrypts."""


class SecretBody(Body):
    object: Literal["organization.secret"]
    kind: Literal["delivery_target", "webhook_endpoint"]
    """What the secret belongs to."""
    id: str
    """The id of the target or the endpoint."""
    name: str
    """The name of the target or the endpoint."""
    project_id: str | None
    """Its project."""
    protection: Protection
    """`current`: by the first key. `old_key`: by another one. `unencrypted`: by none. `lost`: by a key that is gone."""
    key: str | None
    """The fingerprint of the key that protects it; null: none does, or it is lost."""


class SecretList(Body):
    object: Literal["list"]
    data: list[SecretBody]
    keys: list[EncryptionKeyBody]
    """The keys of TUNERY_SECRET_KEYS in their order."""


class RotationBody(Body):
    object: Literal["organization.secret_rotation"]
    rotated: int
    """How many were re-encrypted."""
    remaining: int
    """How many another call re-encrypts; 0: the change is complete."""
    lost: int
    """Secrets that no key decrypts: their owners set them again, or the operator adds the key."""


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
