"""Credentials of delivery targets at rest: Fernet tokens (AES-128-CBC and HMAC-SHA256), with a rotation of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class NoSecretKey(Exception):
    """The credentials cannot be encrypted or decrypted; the message says what the operator has to do."""


def encrypt(keys: Sequence[str], credentials: Mapping[str, str]) -> str:
    """Encrypt with the first of the keys. Raises NoSecretKey."""
    return _fernet(keys).encrypt(json.dumps(dict(credentials)).encode()).decode()


def decrypt(keys: Sequence[str], token: str) -> dict[str, str]:
    """Decrypt with any of the keys. Raises NoSecretKey."""
    try:
        return dict(json.loads(_fernet(keys).decrypt(token.encode())))
    except InvalidToken:
        text = "none of TUNERY_SECRET_KEYS decrypts the credentials of this target; add the key that encrypted them, "
        raise NoSecretKey(f"{text}or set the credentials again") from None


def check_keys(keys: Sequence[str]) -> None:
    """Raises ValueError for a key that is none."""
    for number, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError as error:
            raise ValueError(
                f"key {number} of TUNERY_SECRET_KEYS is not 32 bytes in URL-safe base64; generate one with "
                "`openssl rand -base64 32 | tr +/ -_`"
            ) from error


def _fernet(keys: Sequence[str]) -> MultiFernet:
    if not keys:
        raise NoSecretKey("this server has no TUNERY_SECRET_KEYS, so it stores no credentials; the operator sets it")
    return MultiFernet([Fernet(key) for key in keys])
