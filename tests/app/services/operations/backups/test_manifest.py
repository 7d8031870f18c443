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


class TestSchema:
    def test_of_this_release_is_accepted(self) -> None:
        check_schema(MANIFEST, "b2", {"a1", "b2"}, may_migrate=False)

    def test_of_a_newer_release_is_refused_with_the_release_to_install(self) -> None:
        with pytest.raises(BackupError, match=r"Install Tunery 0\.2\.0 or newer"):
            check_schema(MANIFEST, "a1", {"a1"}, may_migrate=True)

    def test_of_an_earlier_release_needs_consent(self) -> None:
        with pytest.raises(BackupError, match="give --migrate"):
            check_schema(MANIFEST, "c3", {"a1", "b2", "c3"}, may_migrate=False)
        check_schema(MANIFEST, "c3", {"a1", "b2", "c3"}, may_migrate=True)
