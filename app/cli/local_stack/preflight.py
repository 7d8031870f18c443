"""Everything that `tunery up` refuses, asked before anything is created. Touches nothing."""

from __future__ import annotations

import os

from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.unprivileged import Account, account, refuse_unreachable
from app.cli.local_stack.servers.valkey import LocalValkey


def refuse_unusable(layout: Layout) -> None:
    layout.refuse_foreign()
    if not os.environ.get("DATABASE_URL"):
        refuse_unreachable(layout.root, lent_account())
        LocalPostgres(layout.postgres).refuse_unsuitable()
    if not os.environ.get("REDIS_URL"):
        LocalValkey(layout.valkey).refuse_unusable()


def lent_account() -> Account | None:
    """Whom our PostgreSQL will run as; None where that is ourselves, or where it isn't ours."""
    return None if os.environ.get("DATABASE_URL") else account()
