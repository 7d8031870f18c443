"""The manifest of a backup, and which releases restore it."""

from __future__ import annotations

import pytest

from app.services.operations.backup_repository import BackupError, BackupManifest
from app.services.operations.restore import check_schema
from app.system.files import ObjectDigest

MANIFEST = BackupManifest(
    "2026-11-27", "2026-11-27T00:00:00+00:00", "0.2.0", "b2", ObjectDigest(7, "aa"), {"files/1": ObjectDigest(5, "bb")}
)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert BackupManifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert MANIFEST.size_bytes == 12


def test_a_manifest_of_another_format_is_refused() -> None:
    with pytest.raises(BackupError, match="newer release"):
        BackupManifest.from_json(MANIFEST.to_json().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("head", "known", "may_migrate", "advice"),
    [("a1", {"a1"}, True, r"Install Tunery 0\.2\.0"), ("c3", {"a1", "b2", "c3"}, False, "--migrate")],
)
def test_another_release_restores_a_backup_only_if_it_can_migrate_it(
    head: str, known: set[str], may_migrate: bool, advice: str
) -> None:
    with pytest.raises(BackupError, match=advice):
        check_schema(MANIFEST, head, known, may_migrate)
