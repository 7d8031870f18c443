"""Disks that are full, read-only or return errors: an error with the reason, and nothing is stored."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage import LocalStorage
from tests.api_objects import error_of
from tests.full_disk import SmallDisk, small_disk

UPLOAD = {"data": {"purpose": "batch"}, "files": {"file": b"12345"}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        yield disk


@pytest.fixture
def settings(settings: Settings, disk: SmallDisk) -> Settings:
    return settings.model_copy(update={"data_dir": disk.path / "data"})


def test_a_read_only_disk_is_a_503_and_what_is_stored_can_be_read(client: TestClient, disk: SmallDisk) -> None:
    kept = client.post("/v1/files", **UPLOAD).json()["id"]
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)
    try:
        refused = client.post("/v1/files", **UPLOAD)
        assert client.get(f"/v1/files/{kept}/content").content == b"12345"
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk.path)], check=True)
    assert (refused.status_code, "Read-only file system" in refused.json()["error"]["message"]) == (503, True)
    assert [each["id"] for each in client.get("/v1/files").json()["data"]] == [kept]
    assert client.post("/v1/files", **UPLOAD).status_code == 200


def test_an_error_of_the_disk_is_a_503_and_leaves_nothing(
    client: TestClient, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fsync = OSError(errno.EIO, os.strerror(errno.EIO))
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(fsync))
        refused = client.post("/v1/files", **UPLOAD)
    assert (refused.status_code, "Input/output error" in refused.json()["error"]["message"]) == (503, True)
    assert client.get("/v1/files").json()["data"] == []
    assert client.post("/v1/files", **UPLOAD).status_code == 200


def test_a_full_disk_is_a_507_and_the_next_file_that_fits_is_stored(client: TestClient, disk: SmallDisk) -> None:
    for _ in range(3):
        refused = client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x" * (5 << 20)})
        assert error_of(refused, 507)["code"] == "storage_full"
        assert [path for path in disk.path.rglob("*") if path.is_file()] == []
    assert client.get("/v1/files").json()["data"] == []
    assert client.post("/v1/files", **UPLOAD).status_code == 200
