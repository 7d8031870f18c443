"""The storages of the contract: a directory, and a bucket of each server."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from app.storage import LocalStorage, Storage
from app.storage.s3 import S3Storage
from tests.s3 import S3Server, with_prefix


@pytest.fixture(params=["directory", "rclone", "moto"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "directory":
        return LocalStorage(tmp_path / "storage")
    server: S3Server = request.getfixturevalue(request.param)
    return S3Storage(with_prefix(server.location, secrets.token_hex(4)), tmp_path / "staging")
