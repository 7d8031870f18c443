"""Bodies of encrypted secrets, for admins. They never contain a secret or a key."""

from __future__ import annotations

from typing import Literal

from app.api.schemas.common import Body
from app.db.encryption import Protection


class EncryptionKeyBody(Body):
    fingerprint: str
    """The first characters of the SHA-256 of the key."""
    encrypts: bool
    """Whether new secrets are encrypted with it: the first key."""
    protects: int
    """The number of secrets that it decrypts."""


class SecretBody(Body):
    object: Literal["organization.secret"] = "organization.secret"
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
    object: Literal["list"] = "list"
    data: list[SecretBody]
    keys: list[EncryptionKeyBody]
    """The keys of TUNERY_SECRET_KEYS in their order."""


class RotationBody(Body):
    object: Literal["organization.secret_rotation"] = "organization.secret_rotation"
    rotated: int
    """How many were re-encrypted."""
    remaining: int
    """How many another call re-encrypts; 0: the change is complete."""
    lost: int
    """Secrets that no key decrypts: their owners set them again, or the operator adds the key."""
