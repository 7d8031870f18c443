"""Storage in a directory: what only it does."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from app.storage import LocalStorage
from tests.app.storage.test_storage import staged


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


def test_a_full_disk_raises_and_leaves_nothing_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "storage")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        storage.put("k", staged(storage))
    with pytest.raises(FileNotFoundError):
        storage.stat("k")
