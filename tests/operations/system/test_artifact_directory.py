"""Manifests: what they promise, and that they notice when it does not hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.system import artifact_directory
from app.system.artifact_directory import (
    MANIFEST,
    ManifestMismatch,
    newest_valid,
    snapshot_directories,
    step_directories,
    tar_frames,
)
from tests.archives import tar_bytes

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/"), min_size=1, max_size=150)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "adapter"
    (directory / "sub").mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "sub" / "weights.safetensors").write_bytes(bytes(1000))
    artifact_directory.write_manifest(directory, {"step": 7})
    return directory


def test_a_manifest_names_every_file_with_size_and_digest(directory: Path) -> None:
    manifest = artifact_directory.verify(directory)
    assert manifest["step"] == 7
    assert manifest["files"]["sub/weights.safetensors"] == {
        "bytes": 1000,
        "sha256": "541b3e9daa09b20bf85fa273e5cbd3e80185aa4ec298e765db87742b70138a53",
    }


WEIGHTS = "sub/weights.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda root: (root / WEIGHTS).write_bytes(bytes(999)), f"{WEIGHTS} has 999 bytes instead of 1000"),
    "altered": (lambda root: (root / WEIGHTS).write_bytes(bytes(999) + b"\1"), f"{WEIGHTS} was altered"),
    "missing": (lambda root: (root / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "stray": (lambda root: (root / "stray.bin").touch(), r"stray\.bin is not"),
    **{
        f"manifest {text!r}": (lambda root, text=text: (root / MANIFEST).write_text(text), "missing or unreadable")
        for text in ("", "{}", "[]", '{"files": []}', "not json")
    },
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named(directory: Path, damage: Callable[[Path], object], problem: str) -> None:
    damage(directory)
    with pytest.raises(ManifestMismatch, match=problem):
        artifact_directory.verify(directory)


def test_a_missing_manifest_is_an_error_without_the_path_of_the_machine(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    with pytest.raises(ManifestMismatch) as refused:
        artifact_directory.read_manifest(directory)
    assert os.strerror(errno.ENOENT) in str(refused.value)
    assert str(directory.parent) not in str(refused.value)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_bit_of_a_sealed_manifest_can_flip_unseen(directory: Path, data: st.DataObject) -> None:
    """A digit of the step would read as well as before: what is read is refused, or is what was written."""
    path = directory / MANIFEST
    whole, manifest = path.read_bytes(), artifact_directory.verify(directory, sealed=True)
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        assert artifact_directory.verify(directory, sealed=True) == manifest
    except ManifestMismatch:
        pass
    finally:
        path.write_bytes(whole)


def test_a_manifest_without_a_seal_is_read_but_not_where_one_is_needed(directory: Path) -> None:
    manifest = artifact_directory.verify(directory)
    del manifest["seal"]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    assert artifact_directory.verify(directory) == manifest
    with pytest.raises(ManifestMismatch, match="seal"):
        artifact_directory.verify(directory, sealed=True)


def open_one(name: str) -> str:
    if name.startswith("bad"):
        raise ManifestMismatch(f"{name} is cut")
    if name == "away":
        raise OSError("the storage is away")
    return name.upper()


def test_the_newest_that_opens_is_returned_with_the_problems_of_newer_ones() -> None:
    assert newest_valid(["bad4", "bad3", "good2", "good1"], open_one) == ("GOOD2", ["bad4 is cut", "bad3 is cut"])
    assert newest_valid(["bad"], open_one) == (None, ["bad is cut"])
    with pytest.raises(OSError, match="away"):  # no verdict on the directory
        newest_valid(["bad", "away", "good"], open_one)


class TestCandidates:
    def test_snapshots_are_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for name in ("step-000009", "step-1000000", "step-000010", ".step-000011.staged"):
            (tmp_path / name).mkdir()
        assert [path.name for path in step_directories(tmp_path)] == ["step-000009", "step-000010", "step-1000000"]
        assert [path.name for path in snapshot_directories(tmp_path) or []] == [
            "step-1000000",
            "step-000010",
            "step-000009",
        ]

    def test_a_snapshot_is_none_of_several_even_without_its_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / MANIFEST).touch()
        assert snapshot_directories(tmp_path / "one") is None
        assert snapshot_directories(tmp_path / "step-000003") is None
        assert snapshot_directories(tmp_path / "snapshots") == []


@given(st.dictionaries(NAMES, st.binary(max_size=1200), max_size=6))
def test_frames_and_contents_are_the_bytes_of_tarfile(contents: dict[str, bytes]) -> None:
    members = sorted(contents.items())
    frames = tar_frames([(name, len(content)) for name, content in members])
    parts = [part for frame, (_, content) in zip(frames, members, strict=False) for part in (frame, content)]
    assert b"".join([*parts, frames[-1]]) == tar_bytes(contents)


def test_the_format_never_changes() -> None:
    """The digest of an archive of an earlier release: `adapter.sha256` of finished jobs depends on it."""
    frames = tar_frames([("README.md", 3), ("adapter_model.safetensors", 9 << 30)])
    assert (
        hashlib.sha256(b"".join(frames)).hexdigest()
        == "1b5ad792e9a9b3a316ea0ebeb1aeceefdce3a4d02f08bfd8bb4b560becfabd5b"
    )
