"""Copies of a trainer's directories, verified in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.system.artifact_directory import MANIFEST, ManifestMismatch, write_manifest
from worker.jobs.stored_files import copy_verified


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with its manifest; from then on only the copy may hash."""
    directory = tmp_path / "made"
    directory.mkdir()
    (directory / "weights").write_bytes(b"weights")
    write_manifest(directory, {"step": 1})
    monkeypatch.setattr("app.system.artifact_directory.copy_and_hash", None)
    return directory


def test_a_directory_is_verified_while_it_is_copied(made: Path, tmp_path: Path) -> None:
    assert copy_verified(made, tmp_path / "copy")["step"] == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        path.name: path.read_bytes() for path in made.iterdir()
    }


@pytest.mark.parametrize("files", [{}, {"../weights": {}}, {"weights": {}}, {"weights": None}, {"others": {}}])
def test_a_directory_that_differs_from_its_manifest_is_refused(
    made: Path, tmp_path: Path, files: dict[str, object]
) -> None:
    if files:
        (made / MANIFEST).write_text(json.dumps({"files": files}))
    else:
        (made / "weights").write_bytes(b"altered")
    with pytest.raises(ManifestMismatch):
        copy_verified(made, tmp_path / "copy")
