"""The adapter that a program reads: what its manifest must say of the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.db.engine import transaction
from app.db.tables import BaseModelRow
from app.system.artifact_directory import MANIFEST, write_manifest
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.base_and_adapter import DIRECTORY, AttemptFailed, read_adapter


@pytest.fixture
def base(harness: WorkerHarness) -> BaseModelRow:
    with transaction(harness.sessions) as session:
        return session.get_one(BaseModelRow, "tiny")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / DIRECTORY).mkdir()
    return tmp_path


def test_an_adapter_of_the_registered_files_is_read(base: BaseModelRow, directory: Path) -> None:
    sha256 = write_manifest(directory / DIRECTORY, {"base_model": {"manifest_sha256": base.manifest_sha256}})
    assert read_adapter(base, directory).manifest_sha256 == sha256


@pytest.mark.parametrize("entries", [{}, {"base_model": {}}, {"base_model": {"manifest_sha256": "0" * 64}}])
def test_an_adapter_of_other_or_unknown_files_is_refused(
    base: BaseModelRow, directory: Path, entries: dict[str, Any]
) -> None:
    write_manifest(directory / DIRECTORY, entries)
    with pytest.raises(AttemptFailed) as refused:
        read_adapter(base, directory)
    assert (refused.value.code, refused.value.is_final) == ("model_unavailable", True)


@pytest.mark.parametrize("manifest", [None, "{"], ids=["missing", "cut"])
def test_a_manifest_that_cannot_be_read_is_refused(base: BaseModelRow, directory: Path, manifest: str | None) -> None:
    if manifest is not None:
        (directory / DIRECTORY / MANIFEST).write_text(manifest)
    with pytest.raises(AttemptFailed) as refused:
        read_adapter(base, directory)
    assert refused.value.code == "adapter_deleted"
