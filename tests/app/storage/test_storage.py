"""One suite for every Storage: the four verbs, and the same builtin errors from each."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from app.storage import LocalStorage, Storage
from app.storage.base import check_key


@pytest.fixture(params=["local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return {"local": LocalStorage}[request.param](tmp_path / "storage")


def staged(storage: Storage, content: bytes = b"hello") -> Path:
    path = storage.staging / "incoming"
    path.write_bytes(content)
    return path


def test_what_was_put_is_read_back_and_its_source_is_gone(storage: Storage) -> None:
    source = staged(storage)
    assert storage.put("files/file-1", source).size_bytes == 5
    with storage.open("files/file-1") as file:
        assert file.read() == b"hello"
        file.seek(1)
        assert file.read() == b"ello"
    assert not source.exists()


def test_a_later_put_replaces_the_object_whole(storage: Storage) -> None:
    storage.put("k", staged(storage, b"first"))
    with storage.open("k") as reader:
        storage.put("k", staged(storage, b"second, longer"))
        assert reader.read() == b"first"
    assert storage.stat("k").size_bytes == 14


@pytest.mark.parametrize("verb", ["open", "stat"])
def test_an_unknown_key_is_a_file_not_found_error_with_the_key_in_it(storage: Storage, verb: str) -> None:
    with pytest.raises(FileNotFoundError, match="files/none"):
        getattr(storage, verb)("files/none")


def test_deleting_twice_is_deleting_once(storage: Storage) -> None:
    storage.put("k", staged(storage))
    storage.delete("k")
    storage.delete("k")
    with pytest.raises(FileNotFoundError):
        storage.stat("k")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.x", "a\x00b", "a b", "ü"]
)
def test_a_key_that_could_leave_the_root_is_refused(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="is not a storage key"):
        storage.open(key)


@pytest.mark.parametrize("key", ["files/file-0a", "jobs/ftjob-1/attempts/2/snapshots/step-000010/adapter.safetensors"])
def test_our_own_keys_are_accepted(key: str) -> None:
    assert check_key(key) == key


def test_a_source_on_another_filesystem_is_copied_and_removed(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    source = elsewhere / f"tunery-test-{os.getpid()}"
    source.write_bytes(b"from afar")
    storage = LocalStorage(tmp_path / "storage")
    storage.put("k", source)
    assert not source.exists()
    assert storage.stat("k").size_bytes == 9
    assert list(storage.staging.iterdir()) == []


def test_a_full_disk_raises_and_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "storage")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        storage.put("k", staged(storage))
    with pytest.raises(FileNotFoundError):
        storage.stat("k")
