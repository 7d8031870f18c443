"""The connection pool of PostgreSQL. Query functions flush; only the caller (a request, a worker's step) commits."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection as SqlConnection
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

Sessions = sessionmaker[Session]

# InternalError: PostgreSQL aborted the transaction because this process was stopped in the middle of it.
DATABASE_UNAVAILABLE = (OperationalError, InterfaceError, InternalError, PoolTimeout)

CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_MS = 30_000  # no query takes a second; a lock of a stuck client must not block the API
ANSWER_TIMEOUT_SECONDS = 40.0  # beyond the statement timeout, which a server that hangs does not enforce
IDLE_IN_TRANSACTION_MS = 20_000  # a process frozen inside a transaction (SIGSTOP, a paused VM) releases its row locks
PING_AFTER_IDLE_SECONDS = 1.0  # only a round trip detects a server or network that vanished without closing

CONNECT_ARGS = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    # Without keepalives, a connection to a vanished server (power, network) would block for hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC "
    f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}",
}


class TimeLimitedConnection(psycopg.Connection[Any]):
    """A connection that does not wait forever for an answer of a server that hangs: its kernel still confirms every
    packet, so neither the keepalives nor `tcp_user_timeout` end the wait."""

    answer_timeout_seconds: float | None = ANSWER_TIMEOUT_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.answer_timeout_seconds)
        except psycopg.OperationalError as error:
            if self.answer_timeout_seconds is None or self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise  # another error than the end of the wait
            self.close()  # a rollback would wait as long again
            why = f"PostgreSQL did not answer within {self.answer_timeout_seconds:g} s"
            raise psycopg.OperationalError(why) from error


def make_engine(database_url: str, pool_size: int = 5, max_overflow: int = 5) -> Engine:
    """An engine with at most `pool_size` kept connections and `max_overflow` temporary ones under load.

    The pool is LIFO, as the connection used last has its statements prepared. After a restart of the server the pool
    reconnects without an error. `hide_parameters` keeps values out of errors, and so out of the logs.
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
    _connect_with_limit(engine)
    _check_connections(engine)
    return engine


def make_sessions(engine: Engine) -> Sessions:
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def transaction(sessions: Sessions) -> Iterator[Session]:
    """A session with one transaction: committed at the end of the block, rolled back on any error."""
    with sessions() as session, session.begin():
        yield session


def remove_time_limits(connection: SqlConnection) -> None:
    """Allow statements that take longer than a request may, of migrations. The connection leaves its pool."""
    limited = connection.connection.driver_connection
    assert isinstance(limited, TimeLimitedConnection)
    limited.answer_timeout_seconds = None
    connection.detach()
    connection.execute(text("SET statement_timeout = 0"))


def _connect_with_limit(engine: Engine) -> None:
    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> TimeLimitedConnection:
        return TimeLimitedConnection.connect(*arguments, **parameters)


def _check_connections(engine: Engine) -> None:
    """Check connections at checkout as `pool_pre_ping` does, but without a round trip for one used a moment ago."""

    @event.listens_for(engine, "checkin")
    def record_return_time(_connection: Any, record: Any) -> None:
        record.info["returned_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: psycopg.Connection[Any], record: Any, _proxy: Any) -> None:
        returned_at = record.info.get("returned_at")
        if returned_at is None:  # a new connection
            return
        try:
            if time.monotonic() - returned_at >= PING_AFTER_IDLE_SECONDS or _is_readable(connection):
                engine.dialect.do_ping(connection)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            raise InvalidatePoolError from error


def _is_readable(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has sent anything: between transactions it sends only the notice that it terminates."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def first_line(error: Exception) -> str:
    """The first line of an error's text; SQLAlchemy appends the statement and a link."""
    return str(error).split("\n", 1)[0]
