"""Credentials of delivery targets at rest: a JSON object, encrypted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from app.db import encryption
from app.db.encryption import LostKey, NoSecretKey

__all__ = ["NoSecretKey", "decrypt", "encrypt"]


def encrypt(keys: Sequence[str], credentials: Mapping[str, str]) -> str:
    """Encrypt with the first of the keys. Raises NoSecretKey."""
    if not keys:
        raise NoSecretKey("this server has no TUNERY_SECRET_KEYS, so it stores no credentials; the operator sets it")
    return encryption.encrypt(keys, json.dumps(dict(credentials)))


def decrypt(keys: Sequence[str], token: str) -> dict[str, str]:
    """Decrypt with any of the keys. Raises NoSecretKey."""
    try:
        return dict(json.loads(encryption.decrypt(keys, token)))
    except LostKey:
        text = "none of TUNERY_SECRET_KEYS decrypts the credentials of this target; add the key that encrypted them, "
        raise LostKey(f"{text}or set the credentials again (`tunery targets update NAME --credentials FILE`)") from None
