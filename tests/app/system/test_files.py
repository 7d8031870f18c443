"""Directories of base models with files that are none: nothing of them is read, and the refusal takes no time.

And early writeback, which never changes the content of a file, and never fails.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.base_models.catalog import RefusedModel
from app.system import files, model_files
from app.system.files import begin_writeback
from app.system.tokenizer_files import load_renderer
from tests.tiny import make_tiny_base

SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
NAMES = (*SMALL_FILES, "generation_config.json", "model.safetensors", "model.safetensors.index.json", "other.json")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "base")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(path.parent)
        listening.bind(path.name)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "lost": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_none_is_refused_by_name(
    base: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    (base / name).unlink(missing_ok=True)
    KINDS[kind](base / name)
    with pytest.raises(RefusedModel, match=name):
        model_files.read_catalog_entry(base)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_no_reader_opens_one(base: Path, name: str) -> None:
    (base / name).unlink()
    os.mkfifo(base / name)
    with pytest.raises(OSError, match=name) as refused:
        load_renderer(base)
    assert refused.value.strerror == "it is not a regular file"


def test_a_file_without_an_end_is_read_to_its_limit(base: Path) -> None:
    with (base / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # takes no space
    with pytest.raises(RefusedModel, match="more than"):
        model_files.read_catalog_entry(base)


def test_a_huge_text_that_nothing_reads_is_refused(base: Path) -> None:
    with (base / "special_tokens_map.json").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(RefusedModel, match=r"special_tokens_map\.json has more than 268,435,456 bytes"):
        model_files.read_catalog_entry(base)


def test_subdirectories_are_allowed_as_nothing_reads_them(base: Path) -> None:
    (base / "original").mkdir()
    os.mkfifo(base / "original" / "pipe")
    assert model_files.read_catalog_entry(base).hidden_size == 64


def test_links_inside_the_directory_are_followed_and_those_of_a_hubs_cache(base: Path, tmp_path: Path) -> None:
    hub = tmp_path / "models--tiny"
    snapshot, blobs = hub / "snapshots" / "0123", hub / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in base.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert model_files.read_catalog_entry(snapshot).hidden_size == 64
    assert load_renderer(snapshot).template is not None
    assert set(model_files.hash_directory(snapshot)[0]) == {path.name for path in blobs.iterdir()}
    (blobs / "LICENSE").symlink_to("config.json")
    (snapshot / "LICENSE").symlink_to("../../blobs/LICENSE")
    assert model_files.read_catalog_entry(snapshot).hidden_size == 64
    (snapshot / "README.md").symlink_to(tmp_path / "base")
    assert model_files.read_catalog_entry(snapshot).hidden_size == 64  # a directory
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("../../refs")
    with pytest.raises(RefusedModel, match="LICENSE"):
        model_files.read_catalog_entry(snapshot)


def test_writeback_leaves_the_bytes_as_they_are(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        for number in range(4):
            file.write(bytes([number]) * 5000)
            begin_writeback(file.fileno(), 5000 * number, 5000)
        file.seek(0)
        assert file.read() == b"".join(bytes([number]) * 5000 for number in range(4))


def test_starts_the_writeback_of_the_range_and_ignores_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(files, "_sync_file_range", lambda *arguments: (calls.append(arguments), -1)[1])
    begin_writeback(7, 4096, 8192)
    assert calls == [(7, 4096, 8192, files.SYNC_FILE_RANGE_WRITE)]


def test_writeback_does_nothing_where_the_call_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync_file_range", None)
    begin_writeback(-1, 0, 1)
