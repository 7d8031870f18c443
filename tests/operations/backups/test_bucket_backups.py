"""Backups, restores and checks of a service whose files are in a bucket."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from app.services.operations import integrity, restore
from app.storage.s3 import S3Storage
from tests.factories import put_bytes
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


def test_the_check_restores_what_is_missing_or_damaged_and_deletes_orphans(
    service: BackedUpService, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.back_up()
    missing, damaged = sorted(service.backups.digests())[:2]
    good = read(storage, damaged)
    storage.delete(missing)
    put_bytes(storage, damaged, good[:-1] + b"#")
    put_bytes(storage, "files/orphan", b"x")
    monkeypatch.setattr(integrity, "MIN_ORPHAN_AGE_SECONDS", -60)
    assert len(service.check()) == 3
    assert all(how is not None for _, _, how in service.check(repair=True, backups=True))
    assert service.check() == []
    assert read(storage, damaged) == good
