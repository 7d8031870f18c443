"""`tunery storage copy`: from a data directory to a bucket, with every digest checked; continued if interrupted."""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints
from app.db.tables import File, Project
from app.storage import LocalStorage
from app.storage.s3 import S3Storage
from tests.commands.conftest import Tunery
from tests.factories import add_part, make_file, make_job, make_upload, put_bytes
from tests.faulty_proxy import Fault, FaultyProxy
from tests.full_disk import small_disk
from tests.s3 import with_prefix

UPLOAD = {"filename": "a", "purpose": "batch", "mime_type": "text/plain", "bytes": 9}


@pytest.fixture
def bucket(proxy: FaultyProxy, tmp_path: Path) -> S3Storage:
    return S3Storage(with_prefix(proxy.location, secrets.token_hex(4)), tmp_path / "staging")


@pytest.fixture
def operator(
    bare_tunery: Tunery, database_url: str, proxy: FaultyProxy, bucket: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> Tunery:
    variables = proxy.server.environment | {
        "DATABASE_URL": database_url,
        "TUNERY_STORAGE_URL": f"s3://{bucket.location.bucket}/{bucket.location.prefix}",
        "TUNERY_STORAGE_ENDPOINT": proxy.endpoint,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return bare_tunery


@pytest.fixture
def contents(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> dict[str, bytes]:
    """What rows name, by key: files, one of them composed of parts, a snapshot, and the part of a pending upload."""
    with transaction(sessions) as session:
        data = make_file(session, storage, project)
        purged = make_file(session, storage, project, b"purged", "batch")
        files.delete(session, purged)
        files.mark_purged(session, purged)
        for name, content in {"uploads/u/a": b"part", "uploads/u/b": b" and part"}.items():
            put_bytes(storage, name, content)
        storage.compose("files/whole", ["uploads/u/a", "uploads/u/b"])
        sha256 = hashlib.sha256(b"part and part").hexdigest()
        columns = {"purpose": "batch", "filename": "whole", "bytes": 13, "sha256": sha256}
        files.insert(session, File(project_id=project.id, storage_key="files/whole", **columns))
        upload = make_upload(session, project, **UPLOAD)
        add_part(session, upload, b" and part", "uploads/u/b")
        job = make_job(session, project, data, base_model=base_model)
        snapshot = {"MANIFEST.json": b"{}", "state.safetensors": b"weights"}
        keys = {name: f"jobs/{job.id}/attempts/1/snapshots/step-000001/{name}" for name in snapshot}
        for name, content in snapshot.items():
            put_bytes(storage, keys[name], content)
        checkpoints.add_snapshot(session, job, 1, hashlib.sha256(b"{}").hexdigest(), keys)
        names = [data.storage_key, "files/whole", "uploads/u/b", *keys.values()]
    contents = {}
    for key in names:
        with storage.open(key) as file:
            contents[key] = file.read()
    return contents


def stored(bucket: S3Storage) -> dict[str, bytes]:
    contents = {}
    for prefix in ("files", "uploads", "jobs"):
        for key in bucket.older_than(prefix, 2e9):
            with bucket.open(key) as file:
                contents[key] = file.read()
    return contents


def test_the_copy_has_what_rows_name_and_nothing_else(
    operator: Tunery, storage: LocalStorage, bucket: S3Storage, contents: dict[str, bytes]
) -> None:
    done = operator("storage", "copy", storage.root)
    assert done.exit_code == 0, done.err
    assert f"{len(contents)} of {len(contents)} objects" in done.out
    assert stored(bucket) == contents
    assert list(storage.staging.iterdir()) == []


def test_a_repeated_copy_sends_no_object_again(
    operator: Tunery, storage: LocalStorage, bucket: S3Storage, proxy: FaultyProxy, contents: dict[str, bytes]
) -> None:
    proxy.fault = Fault(methods=("PUT",), skip=2, status=403, code="AccessDenied")
    done = operator("storage", "copy", storage.root)
    assert done.exit_code == 1
    first = set(stored(bucket))
    assert 0 < len(first) < len(contents)
    proxy.fault, proxy.requests = None, []
    assert operator("storage", "copy", storage.root).exit_code == 0
    # A set: the client repeats a request whose connection broke.
    sent = {request for request in proxy.requests if request.startswith("PUT")}
    assert len(sent) == len(contents) - len(first)
    assert stored(bucket) == contents
    proxy.requests = []
    assert operator("storage", "copy", storage.root).exit_code == 0
    assert {request.split()[0] for request in proxy.requests} == {"HEAD"}  # verified objects are only looked up


def test_objects_that_differ_or_cannot_be_read_are_named_and_others_copied(
    operator: Tunery, storage: LocalStorage, bucket: S3Storage, contents: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    read, unreadable = LocalStorage.open, "files/whole"

    def fail(self: LocalStorage, key: str) -> BinaryIO:
        if key == unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, key)

    monkeypatch.setattr(LocalStorage, "open", fail)
    altered = next(key for key in contents if key.startswith("files/file-"))
    missing = next(key for key in contents if key.endswith("state.safetensors"))
    (storage.objects / altered).write_bytes(contents[altered].upper())
    storage.delete(missing)
    done = operator("storage", "copy", storage.root)
    assert done.exit_code == 1
    assert f"{altered} differs" in done.err
    assert f"{missing} is missing" in done.err
    assert f"{unreadable} was not" in done.err
    assert set(stored(bucket)) == set(contents) - {altered, missing, unreadable}


def test_a_disk_that_is_read_only_is_copied(
    operator: Tunery, storage: LocalStorage, bucket: S3Storage, contents: dict[str, bytes], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        failed = shutil.copytree(storage.root, disk.path / "storage")
        subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)
        done = operator("storage", "copy", failed)
    assert done.exit_code == 0, done.err
    assert f"{failed} is read-only" in done.err
    assert stored(bucket) == contents


def test_a_copy_without_a_bucket_or_a_directory_is_a_usage_error(
    operator: Tunery, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operator("storage", "copy", tmp_path).exit_code == 2
    monkeypatch.delenv("TUNERY_STORAGE_URL")
    done = operator("storage", "copy", storage.root)
    assert (done.exit_code, "TUNERY_STORAGE_URL" in done.err) == (2, True)
