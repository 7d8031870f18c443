"""A pool of asynchronous connections, for the few queries that run in the event loop: the most frequent ones.

Connections are opened when needed, at most `limit`, and reused last in, first out. If the server is down, the request
fails at once; after a restart of the server, a query is tried a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine

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

    async def fetch_one(self, query: str, values: Mapping[str, Any]) -> Any:
        """The first row, or None; the query is its own transaction. Raises Unavailable."""
        return next(iter(await self.fetch_all(query, values)), None)

    async def fetch_all(self, query: str, values: Mapping[str, Any]) -> list[Any]:
        """Every row; the query is its own transaction. Raises Unavailable."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._free:
                return await self._fetch_all(query, values)
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
        return await psycopg.AsyncConnection.connect(**self._arguments, autocommit=True, row_factory=namedtuple_row)

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
