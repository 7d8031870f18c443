"""Checks of `tunery up` that run before anything is created. They change nothing."""

from __future__ import annotations

import os

from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.unprivileged import Account, check_reachable, postgres_account
from app.cli.local_stack.servers.valkey import LocalValkey


def check_data_directory(layout: Layout) -> None:
    """Raises CannotStart if PostgreSQL or Valkey cannot run in the data directory."""
    layout.check_ownership()
    if not os.environ.get("DATABASE_URL"):
        check_reachable(layout.root, local_postgres_account())
        LocalPostgres(layout.postgres).check_installation()
    if not os.environ.get("REDIS_URL"):
        LocalValkey(layout.valkey).check_usable()


def local_postgres_account() -> Account | None:
    """The other account that the local PostgreSQL runs as; None if there is none, or with DATABASE_URL."""
    return None if os.environ.get("DATABASE_URL") else postgres_account()
