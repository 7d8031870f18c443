"""Backups, restores and checks of a service whose files are in a bucket."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from app.services.operations import restore
from app.storage.s3 import S3Storage
from tests.operations.backups.conftest import BackedUpService
from tests.s3 import S3Server, with_prefix


def bucket(server: S3Server, staging: Path) -> S3Storage:
    """A prefix of its own."""
    return S3Storage(with_prefix(server.location, secrets.token_hex(4)), staging)


@pytest.fixture
def storage(moto: S3Server, tmp_path: Path) -> S3Storage:
    return bucket(moto, tmp_path / "staging")


def read(storage: Any, key: str) -> bytes:
    with storage.open(key) as file:
        return bytes(file.read())


def test_a_backup_is_restored_into_another_bucket(
    service: BackedUpService, storage: S3Storage, blank_database_url: str, moto: S3Server, tmp_path: Path
) -> None:
    first, second = service.back_up(), service.back_up()
    assert first.copied_count == len(first.manifest.objects) > 3
    assert (second.copied_count, second.manifest.damaged) == (0, {})
    target = bucket(moto, tmp_path / "target")
    restore.restore(blank_database_url, target, service.backups, second.manifest, lambda _: None)
    keys = list(second.manifest.objects)
    assert [read(target, key) for key in keys] == [read(storage, key) for key in keys]
