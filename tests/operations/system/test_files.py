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
def test_an_irregular_file_is_refused_by_name(
    base: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    (base / name).unlink(missing_ok=True)
    KINDS[kind](base / name)
    with pytest.raises(RefusedModel, match=name):
        model_files.read_catalog_entry(base)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_a_fifo_is_opened_by_no_reader(base: Path, name: str) -> None:
    (base / name).unlink()
    os.mkfifo(base / name)
    with pytest.raises(OSError, match=name) as refused:
        load_renderer(base)
    assert "not a regular" in str(refused.value.strerror)


@pytest.mark.parametrize(("name", "size_bytes"), [("config.json", 1 << 40), ("special_tokens_map.json", 1 << 42)])
def test_a_file_above_its_limit_is_refused_without_being_read(base: Path, name: str, size_bytes: int) -> None:
    with (base / name).open("ab") as file:
        file.truncate(size_bytes)  # takes no space
    with pytest.raises(RefusedModel, match=f"{name} .*more than"):
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


def test_writeback_starts_for_the_range_and_changes_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        for number in range(4):
            file.write(bytes([number]) * 5000)
            begin_writeback(file.fileno(), 5000 * number, 5000)
        file.seek(0)
        assert file.read() == b"".join(bytes([number]) * 5000 for number in range(4))
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(files, "_sync_file_range", lambda *arguments: (calls.append(arguments), -1)[1])
    begin_writeback(7, 4096, 8192)
    assert calls == [(7, 4096, 8192, files.SYNC_FILE_RANGE_WRITE)]
    monkeypatch.setattr(files, "_sync_file_range", None)  # where the call is missing
    begin_writeback(-1, 0, 1)
