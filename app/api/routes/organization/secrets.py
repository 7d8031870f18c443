"""/v1/organization/secrets, for admins: which key protects what, and the change to a new key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.api.auth import AUTHENTICATED
from app.api.dependencies import AppStateDep, SessionDep
from app.api.idempotency import IdempotentRoute
from app.api.schemas.operations import EncryptionKeyBody, RotationBody, SecretList
from app.db import encryption
from app.services.operations import secrets

MAX_ROTATED = 500  # in one transaction

router = APIRouter(
    prefix="/v1/organization/secrets",
    tags=["Projects and keys"],
    dependencies=[AUTHENTICATED],
    route_class=IdempotentRoute,
)


@router.get("", response_model=SecretList, summary="List encrypted secrets and the keys that protect them")
def list_secrets(session: SessionDep, app_state: AppStateDep) -> Any:
    """Credentials of delivery targets and signing secrets of webhooks, without the secrets themselves."""
    keys = app_state.settings.encryption_keys
    found = secrets.view(session, keys)
    fingerprints = [encryption.fingerprint(key) for key in keys]
    shown = [
        EncryptionKeyBody(fingerprint=each, encrypts=number == 0, protects=sum(row.key == each for row in found))
        for number, each in enumerate(fingerprints)
    ]
    return {"data": found, "keys": shown}


@router.post("/rotate", response_model=RotationBody, summary="Re-encrypt secrets with the first key")
def rotate_secrets(session: SessionDep, app_state: AppStateDep) -> Any:
    """At most 500 at once: repeat the call until nothing remains. An interruption loses nothing."""
    return secrets.rotate(session, app_state.settings.encryption_keys, MAX_ROTATED)
