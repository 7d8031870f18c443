"""The connection to PostgreSQL. Queries flush; only the edge (a request, a worker's step) commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_MS = 30_000  # none of ours takes a second; a lock held by a stuck client must not hang the API
IDLE_IN_TRANSACTION_MS = 20_000  # a process that froze in the middle of one (SIGSTOP, a paused VM) keeps no row locked

CONNECT_ARGS = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    # A server that vanishes without a word (power, network) would otherwise be waited for for hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC "
    f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}",
}


def make_engine(database_url: str, pool_size: int = 5, spare: int = 5) -> Engine:
    """At most `pool_size` connections and, for what comes on top, `spare` more.

    `pool_pre_ping` costs one round trip and turns a restarted server into a fresh connection, not an error.
    `hide_parameters`: values stay out of errors, and so out of the logs.
    """
    return create_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=spare,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=CONNECT_ARGS,
    )


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(sessions: Sessions) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back on any error."""
    with sessions() as session, session.begin():
        yield session
