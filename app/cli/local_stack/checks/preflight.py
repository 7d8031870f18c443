"""Checks of `tunery up` that run before anything is created. They change nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.unprivileged import Account, check_reachable, postgres_account
from app.cli.local_stack.servers.valkey import LocalValkey
from app.settings import Settings, invalid_settings
from app.storage import StorageError, open_storage


def check_data_directory(layout: Layout) -> None:
    """Raises CannotStart if PostgreSQL or Valkey cannot run in the data directory."""
    layout.check_ownership()
    if not os.environ.get("DATABASE_URL"):
        check_reachable(layout.root, local_postgres_account())
        LocalPostgres(layout.postgres).check_installation()
    if not os.environ.get("REDIS_URL"):
        LocalValkey(layout.valkey).check_usable()


def storage_settings(data_dir: Path) -> Settings:
    """The settings of storage from the environment. Raises CannotStart for invalid settings."""
    try:
        return Settings(database_url="", redis_url="", data_dir=data_dir)
    except ValidationError as error:
        raise CannotStart(invalid_settings(error)) from None


def check_bucket(data_dir: Path) -> None:
    """Raises CannotStart if the bucket of the settings cannot be used."""
    location = storage_settings(data_dir).s3_location
    if location is not None:
        with tempfile.TemporaryDirectory() as directory:
            try:
                open_storage(Path(directory), location).check()
            except StorageError as error:
                raise CannotStart(f"TUNERY_STORAGE_URL=s3://{location.bucket}: {error.strerror}.") from error


def local_postgres_account() -> Account | None:
    """The other account that the local PostgreSQL runs as; None if there is none, or with DATABASE_URL."""
    return None if os.environ.get("DATABASE_URL") else postgres_account()
