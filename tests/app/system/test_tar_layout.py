"""The layout of an adapter's archive is that of Python's tarfile, and the same for the same files everywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from app.system.tar_layout import describe_archive, tar_frames
from tests.archives import tar_bytes, tar_of

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/"), min_size=1, max_size=150)


@given(st.dictionaries(NAMES, st.binary(max_size=1200), max_size=6))
def test_frames_and_contents_are_the_bytes_of_tarfile(contents: dict[str, bytes]) -> None:
    members = sorted(contents.items())
    frames = tar_frames([(name, len(content)) for name, content in members])
    parts = [part for frame, (_, content) in zip(frames, members, strict=False) for part in (frame, content)]
    assert b"".join([*parts, frames[-1]]) == tar_bytes(contents)


def test_an_archive_is_described_without_being_written(tmp_path: Path) -> None:
    directory = tmp_path / "step-000004"
    directory.mkdir()
    for name, content in {"b.bin": b"x" * 5000, "MANIFEST.json": b"{}", "empty": b""}.items():
        (directory / name).write_bytes(content)
    archive = tar_of(directory)
    assert describe_archive(directory) == (len(archive), hashlib.sha256(archive).hexdigest())


def test_the_format_never_changes() -> None:
    """The digest of an archive of an earlier release: `adapter.sha256` of finished jobs depends on it."""
    frames = tar_frames([("README.md", 3), ("adapter_model.safetensors", 9 << 30)])
    assert (
        hashlib.sha256(b"".join(frames)).hexdigest()
        == "1b5ad792e9a9b3a316ea0ebeb1aeceefdce3a4d02f08bfd8bb4b560becfabd5b"
    )
