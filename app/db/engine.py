"""The connection to PostgreSQL. Queries flush; only the edge (a request, a worker's step) commits."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_MS = 30_000  # none of ours takes a second; a lock held by a stuck client must not hang the API
IDLE_IN_TRANSACTION_MS = 20_000  # a process that froze in the middle of one (SIGSTOP, a paused VM) keeps no row locked
PING_AFTER_IDLE_SECONDS = 1.0  # unused: a server or a network that went without a word is noticed by a round trip only

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


def make_engine(database_url: str, pool_size: int = 5, max_overflow: int = 5) -> Engine:
    """At most `pool_size` connections and, for what comes on top, `max_overflow` more.

    The one that was used last is lent first: its statements are prepared. A restarted server costs a fresh connection,
    not an error. `hide_parameters`: values stay out of errors, and so out of the logs.
    """
    engine = create_engine(
        database_url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=10,
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args=CONNECT_ARGS,
    )
    _check_connections(engine)
    return engine


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(sessions: Sessions) -> Iterator[Session]:
    """One transaction: committed at the end of the block, rolled back on any error."""
    with sessions() as session, session.begin():
        yield session


def _check_connections(engine: Engine) -> None:
    """`pool_pre_ping`, without its round trip for a connection that is in use all the time."""

    @event.listens_for(engine, "checkin")
    def note_time(_connection: Any, record: Any) -> None:
        record.info["returned_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: psycopg.Connection[Any], record: Any, _lent: Any) -> None:
        returned_at = record.info.get("returned_at")
        if returned_at is None:  # it was made just now
            return
        try:
            if time.monotonic() - returned_at >= PING_AFTER_IDLE_SECONDS or _is_readable(connection):
                engine.dialect.do_ping(connection)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            raise InvalidatePoolError from error


def _is_readable(connection: psycopg.Connection[Any]) -> bool:
    """Between transactions a server says nothing but that it stops."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
