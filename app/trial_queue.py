"""The channel of trial answers in Redis/Valkey, which API and workers share; every key in it expires.

    tunery:trial:idle:OWNER     a free slot and the base models of its host; it expires unless the worker renews it
    tunery:trial:ask:OWNER      the question of the API that has deleted that key, and so claimed the slot
    tunery:trial:answer:ID      the records of an answer, as a list
    tunery:trial:gone:ID        the client of the answer has disconnected

A slot is claimed by deleting its key: of several requests one gets it. PostgreSQL is not involved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import redis
from redis import asyncio as aredis
from redis.asyncio import BlockingConnectionPool

from app.domain.answers.trial import TrialQuestion, TrialRecord

IDLE_TTL_SECONDS = 4
ASK_TTL_SECONDS = 10
ANSWER_TTL_SECONDS = 300
POLL_SECONDS = 1.0
SOCKET_TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 64
PREFIX = "tunery:trial"
QUEUE_UNAVAILABLE = (redis.RedisError, OSError)


class TrialSlot:
    """The worker's side. Every method raises QUEUE_UNAVAILABLE."""

    def __init__(self, redis_url: str, owner: str) -> None:
        self._owner = owner
        self._redis = redis.Redis.from_url(
            as_redis_py(redis_url), socket_connect_timeout=SOCKET_TIMEOUT_SECONDS, decode_responses=True
        )

    def next_question(self, models: Iterable[str]) -> TrialQuestion | None:
        """Offer the slot, and wait a second for a question."""
        idle = f"{PREFIX}:idle:{self._owner}"
        self._redis.set(idle, json.dumps(sorted(models)), ex=IDLE_TTL_SECONDS)
        found = self._redis.blpop([f"{PREFIX}:ask:{self._owner}"], timeout=POLL_SECONDS)
        if found is None:
            return None
        self._redis.delete(idle)  # written anew by this call while the API had it claimed
        return TrialQuestion.model_validate_json(found[1])

    def refuse_others(self) -> None:
        """Withdraw the offer of the slot, and answer the questions that arrived since with "busy"."""
        self._redis.delete(f"{PREFIX}:idle:{self._owner}")
        while (found := self._redis.lpop(f"{PREFIX}:ask:{self._owner}")) is not None:
            other = TrialQuestion.model_validate_json(str(found))
            self.send(TrialRecord(id=other.id, type="error", reason="busy"))

    def send(self, record: TrialRecord) -> bool:
        """Send a record; False if the client of the answer has disconnected."""
        answer = f"{PREFIX}:answer:{record.id}"
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.rpush(answer, record.model_dump_json(exclude_defaults=True))
            pipeline.expire(answer, ANSWER_TTL_SECONDS)
            pipeline.exists(f"{PREFIX}:gone:{record.id}")
            return not pipeline.execute()[2]

    def close(self) -> None:
        self._redis.close()


class TrialQueue:
    """The API's side. Every method raises QUEUE_UNAVAILABLE."""

    def __init__(self, redis_url: str) -> None:
        self._url = as_redis_py(redis_url)
        self._client: aredis.Redis | None = None

    async def ask(self, question: TrialQuestion, base_model: str) -> bool:
        """Claim a free slot whose host has the base model, and send the question there; False if there is none."""
        client = self._connected()
        async for key in client.scan_iter(match=f"{PREFIX}:idle:*", count=1_000):
            models = await client.get(key)
            if models is None or base_model not in json.loads(models) or not await client.delete(key):
                continue
            ask = f"{PREFIX}:ask:{key.removeprefix(f'{PREFIX}:idle:')}"
            async with client.pipeline(transaction=True) as pipeline:
                # an earlier release does not know every field
                pipeline.rpush(ask, question.model_dump_json(exclude_defaults=True))
                pipeline.expire(ask, ASK_TTL_SECONDS)
                await pipeline.execute()
            return True
        return False

    async def next_record(self, id: str, timeout_seconds: float) -> TrialRecord | None:
        """The next record of an answer; None after the timeout."""
        found = await self._connected().blpop([f"{PREFIX}:answer:{id}"], timeout=timeout_seconds)
        return None if found is None else TrialRecord.model_validate_json(found[1])

    async def give_up(self, id: str) -> None:
        await self._connected().set(f"{PREFIX}:gone:{id}", "1", ex=ANSWER_TTL_SECONDS)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _connected(self) -> aredis.Redis:
        if self._client is None:  # in the event loop that uses it
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=MAX_CONNECTIONS,
                timeout=SOCKET_TIMEOUT_SECONDS,
                socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
                decode_responses=True,
            )
            self._client = aredis.Redis.from_pool(pool)
        return self._client


def as_redis_py(url: str) -> str:
    """Convert kombu's `redis+socket://` to redis-py's `unix://`; other URLs are the same in both."""
    return url.replace("redis+socket://", "unix://", 1)
