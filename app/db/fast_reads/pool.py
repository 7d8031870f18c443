"""A pool of asynchronous connections, for the few queries that run in the event loop: the most frequent ones.

Connections are opened when needed, at most `limit`, and reused last in, first out. If the server is down, the request
fails at once; after a restart of the server, a query is tried a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache, partial
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
NO_ANSWER = "PostgreSQL does not answer; try again in a few seconds"
MAX_RUNS = 4  # of one query at once: PostgreSQL works while responses are rendered, and a lost connection delays a part


class AsyncConnections:
    def __init__(self, engine: Engine, limit: int) -> None:
        """Connects to the database of `engine`."""
        self._arguments = connect_arguments(engine)
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(limit)
        self._batches: dict[Executable, _Batch] = {}
        self.touched_keys: set[str] = set()  # those whose `last_used_at` is being written, once for all polls

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
            raise Unavailable(NO_ANSWER) from error

    async def fetch_batched(self, query: Executable, values: Mapping[str, str]) -> Any:
        """The row of `query` for these values, or None, by a read that begins after this call. Raises Unavailable.

        The calls that arrive while MAX_RUNS of the query run are answered together by its next run. Each value is an
        element of the array of its name, and the query returns for a row the `number` of the elements, from 1.
        """
        batch = self._batches.get(query)
        if batch is None:
            batch = self._batches[query] = _Batch(partial(self.fetch_all, query), tuple(values))
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):  # of the wait for other runs, too
                return await batch.fetch(tuple(values.values()))
        except TimeoutError as error:
            raise Unavailable(NO_ANSWER) from error

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


class _Batch:
    """The calls that wait for the next run of a query. Belongs to one event loop."""

    def __init__(self, fetch_all: Callable[[Mapping[str, Any]], Coroutine[Any, Any, list[Any]]], names: Sequence[str]):
        self._fetch_all = fetch_all
        self._names = names
        self._waiting: dict[tuple[str, ...], asyncio.Future[Any]] = {}
        self._runs: set[asyncio.Task[None] | None] = set()

    async def fetch(self, values: tuple[str, ...]) -> Any:
        """The row of these values; equal calls share it."""
        loop = asyncio.get_running_loop()
        future = self._waiting.get(values) or self._waiting.setdefault(values, loop.create_future())
        if not self._runs or (len(self._waiting) == 1 and len(self._runs) < MAX_RUNS):
            run = loop.create_task(self._run())
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)  # also if it is cancelled before it begins
        return await asyncio.shield(future)  # a client that disconnects does not cancel the read of the others

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            await self._answer(batch)
        self._runs.discard(asyncio.current_task())  # at once: a call before the callback starts another run

    async def _answer(self, batch: Mapping[tuple[str, ...], asyncio.Future[Any]]) -> None:
        try:
            columns = map(list, zip(*batch, strict=True))
            rows = await self._fetch_all(dict(zip(self._names, columns, strict=True)))
        except Exception as error:
            for future in batch.values():
                future.set_exception(error)
                future.exception()  # retrieved here, as every caller may have disconnected
            return
        row_by_number = {row.number: row for row in rows}
        for number, future in enumerate(batch.values(), 1):
            future.set_result(row_by_number.get(number))
