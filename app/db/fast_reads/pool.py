"""A pool of asynchronous connections, for the few queries that run in the event loop: the most frequent ones.

Connections are opened when needed, at most `limit`, and reused last in, first out. If the server is down, the request
fails at once; after a restart of the server, a query is tried a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads
from pydantic_core import from_json
from sqlalchemy import Engine, Executable
from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg, PGDialect_psycopg

from app.db.engine import CONNECT_ARGS
from app.errors import Unavailable

Connection = psycopg.AsyncConnection[Any]
TIMEOUT_SECONDS = 10


class AsyncConnections:
    def __init__(self, engine: Engine, limit: int) -> None:
        """Connects to the database of `engine`."""
        self._arguments = connect_arguments(engine)
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(limit)

    async def fetch_one(self, query: str | Executable, values: Mapping[str, Any]) -> Any:
        """The first row, or None; the query is its own transaction. Raises Unavailable."""
        return next(iter(await self.fetch_all(query, values)), None)

    async def fetch_all(self, query: str | Executable, values: Mapping[str, Any]) -> list[Any]:
        """Every row; the query, of SQLAlchemy or in SQL, is its own transaction. Raises Unavailable."""
        sql = query if isinstance(query, str) else _sql(query)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._free:
                return await self._fetch_all(sql, values)
        except (psycopg.OperationalError, TimeoutError) as error:
            raise Unavailable("PostgreSQL does not answer; try again in a few seconds") from error

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _fetch_all(self, query: str, values: Mapping[str, Any]) -> list[Any]:
        if self._idle:
            try:
                return await self._run(self._idle.pop(), query, values)
            except psycopg.OperationalError:
                await self.close()  # the other connections have lost the same server
        return await self._run(await self._connect(), query, values)

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(
            **self._arguments, autocommit=True, row_factory=namedtuple_row
        )
        set_json_loads(from_json, connection)  # half the time of `json.loads`
        return connection

    async def _run(self, connection: Connection, query: str, values: Mapping[str, Any]) -> list[Any]:
        try:
            rows = await (await connection.execute(query, values)).fetchall()
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)
        return rows


def connect_arguments(engine: Engine) -> dict[str, Any]:
    """The arguments of `psycopg.connect` for the database of `engine`."""
    return {**CONNECT_ARGS, **engine.dialect.create_connect_args(engine.url)[1]}


class _InlineConstants(PGCompiler_psycopg):
    """Writes constants into the statement, so that only parameters without a value are sent at each execution."""

    def visit_bindparam(self, bindparam: Any, **options: Any) -> Any:  # type: ignore[override]
        options["literal_binds"] = not bindparam.required
        return super().visit_bindparam(bindparam, **options)  # type: ignore[no-untyped-call]


DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]
DIALECT.statement_compiler = _InlineConstants


@cache
def _sql(query: Executable) -> str:
    """The statement with psycopg's placeholders."""
    return str(query.compile(dialect=DIALECT))  # type: ignore[attr-defined]


class SingleFlight:
    """Coalesce identical concurrent reads: a caller shares an in-flight read that started at or after `since`.

    No result is kept after its read has ended. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, tuple[float, asyncio.Task[Any]]] = {}

    async def do(self, key: Hashable, since: float, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a `read` that started at `since` or later, by the loop's clock. Raises what `read` raises."""
        started_at, task = self._in_flight.get(key, (0.0, None))
        if task is None or started_at < since:
            task = self._start(key, read)
        return await asyncio.shield(task)

    def _start(self, key: Hashable, read: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(read())
        entry = self._in_flight[key] = (loop.time(), task)

        def forget(done: asyncio.Task[Any]) -> None:
            if self._in_flight.get(key) is entry:
                del self._in_flight[key]
            if not done.cancelled():
                done.exception()  # retrieved here, as every caller may have disconnected

        task.add_done_callback(forget)
        return task
