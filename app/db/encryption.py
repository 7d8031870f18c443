"""Encryption of secrets at rest: Fernet tokens (AES-128-CBC and HMAC-SHA256), with a rotation of keys.

A signing secret of a service without keys is stored as it is, and encrypted once the service has one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

TOKEN_PREFIX = "gAAAA"  # the version byte of a Fernet token and the first bytes of its time, which are zero
FINGERPRINT_CHARACTERS = 8


class NoSecretKey(Exception):
    """The secret cannot be encrypted or decrypted; the message says what the operator has to do."""


class LostKey(NoSecretKey):
    """There are keys, and none of them decrypts the secret."""


class Protection(StrEnum):
    CURRENT = "current"  # encrypted with the first key
    OLD_KEY = "old_key"  # encrypted with another key that is still there
    UNENCRYPTED = "unencrypted"
    LOST = "lost"  # encrypted with a key that is gone


def encrypt(keys: Sequence[str], text: str) -> str:
    """Encrypt with the first of the keys. Raises NoSecretKey."""
    return _fernet(keys).encrypt(text.encode()).decode()


def decrypt(keys: Sequence[str], token: str) -> str:
    """Decrypt with any of the keys. Raises NoSecretKey, LostKey."""
    try:
        return _fernet(keys).decrypt(token.encode()).decode()
    except InvalidToken:
        raise LostKey("none of TUNERY_SECRET_KEYS decrypts it; add the key that encrypted it") from None


def protect(keys: Sequence[str], text: str) -> str:
    """The text as it is stored: encrypted, if there is a key."""
    return encrypt(keys, text) if keys else text


def reveal(keys: Sequence[str], stored: str) -> str:
    """The text that `protect` stored. Raises NoSecretKey, LostKey."""
    return decrypt(keys, stored) if stored.startswith(TOKEN_PREFIX) else stored


def protection(keys: Sequence[str], stored: str) -> tuple[Protection, str | None]:
    """How a stored secret is protected, and the fingerprint of its key, if that is there."""
    if not stored.startswith(TOKEN_PREFIX):
        return Protection.UNENCRYPTED, None
    for number, key in enumerate(keys):
        try:
            Fernet(key).decrypt(stored.encode())
        except InvalidToken:
            continue
        return Protection.OLD_KEY if number else Protection.CURRENT, fingerprint(key)
    return Protection.LOST, None


def fingerprint(key: str) -> str:
    """Enough of the SHA-256 of a key to tell keys apart."""
    return hashlib.sha256(key.encode()).hexdigest()[:FINGERPRINT_CHARACTERS]


def _fernet(keys: Sequence[str]) -> MultiFernet:
    if not keys:
        raise NoSecretKey("this process has no TUNERY_SECRET_KEYS; the operator sets it")
    return MultiFernet([Fernet(key) for key in keys])
