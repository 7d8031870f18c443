"""Storage in a directory: what only it does."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from app.storage import LocalStorage
from tests.storage.test_storage import staged


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def test_a_later_put_replaces_the_object_whole(storage: LocalStorage) -> None:
    storage.put("k", staged(storage, b"first"))
    with storage.open("k") as reader:
        storage.put("k", staged(storage, b"second, longer"))
        assert reader.read() == b"first"
    assert storage.stat("k").size_bytes == 14


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


class TestFilesOfOtherPrograms:
    """Their names begin with a dot: rsync, NFS and editors leave such files."""

    @pytest.mark.parametrize("stray", [".file-1.Xa3k9Q", ".nfs000000000001", ".DS_Store", ".000000.swp"])
    def test_files_beside_objects_hide_none_and_delete_none(self, storage: LocalStorage, stray: str) -> None:
        keys = ["files/file-1", "files/file-2"]
        for key in keys:
            storage.put(key, staged(storage))
        (storage.objects / "files" / stray).touch()
        assert sorted(storage.older_than("files", time.time() + 60)) == keys
        storage.delete("files")
        assert [storage.stat(key).key for key in keys] == keys
        with pytest.raises(FileNotFoundError):
            storage.open("files")

    def test_files_beside_segments_are_no_part_of_the_object(self, storage: LocalStorage) -> None:
        for part in ("parts/1", "parts/2"):
            storage.put(part, staged(storage, b"part"))
        storage.compose("files/whole", ["parts/1", "parts/2"])
        (storage.objects / "files/whole/.nfs000000000001").write_bytes(b"stray")
        assert storage.open("files/whole").read() == b"partpart"
        assert list(storage.older_than("files", time.time() + 60)) == ["files/whole"]
        storage.delete("files/whole")
        assert list(storage.older_than("files", time.time() + 60)) == []


def test_a_full_disk_raises_and_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "storage")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        storage.put("k", staged(storage))
    with pytest.raises(FileNotFoundError):
        storage.stat("k")
