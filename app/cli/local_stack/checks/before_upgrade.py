"""`tunery doctor --before-upgrade`: what a new release will find and change."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.exc import OperationalError, ProgrammingError

from app.cli.client.service_discovery import find_database, find_layout
from app.cli.errors import CliError
from app.db.engine import make_engine
from app.domain.operations.upgrade import UpgradeCheck, check_upgrade
from app.services.operations import upgrade


def run_upgrade_checks(data_dir: Path | None) -> Sequence[UpgradeCheck]:
    """Reads only. The free space is known for the database of `tunery up`. Raises CliError."""
    root = find_layout(data_dir).root
    is_local = not os.environ.get("DATABASE_URL")
    free_bytes = shutil.disk_usage(root).free if is_local and root.exists() else None
    engine = make_engine(find_database(data_dir), pool_size=1)
    try:
        with engine.connect() as connection:
            version = importlib.metadata.version("tunery")
            return check_upgrade(upgrade.facts(connection, version, os.environ, free_bytes))
    except OperationalError as error:
        raise CliError(f"PostgreSQL does not answer: {str(error.orig).strip().splitlines()[0]}") from None
    except ProgrammingError as error:
        raise CliError(f"The database has no tables of Tunery: {str(error.orig).strip().splitlines()[0]}") from None
    finally:
        engine.dispose()
