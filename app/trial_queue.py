"""The channel of trial answers in Redis/Valkey, which API and workers share; every key in it expires.

    tunery:trial:idle:OWNER     a free slot and the base models of its host; it expires unless the worker renews it
    tunery:trial:ask:OWNER      the question of the API that has deleted that key, and so claimed the slot
    tunery:trial:answer:ID      the records of an answer, as a list
    tunery:trial:gone:ID        the client of the answer has disconnected
    tunery:trial:refused        "PROJECT BASE_MODEL" of requests that found no free slot, by the time of the refusal
    tunery:trial:answered       projects by the time when they got a slot

A slot is claimed by deleting its key: of several requests one gets it. PostgreSQL is not involved. Projects take turns:
see `TrialQueue.ask`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

import redis
from redis import asyncio as aredis
from redis.asyncio import BlockingConnectionPool

from app.domain.answers.trial import TrialQuestion, TrialRecord

IDLE_TTL_SECONDS = 4
ASK_TTL_SECONDS = 10
ANSWER_TTL_SECONDS = 300
POLL_SECONDS = 1.0
SILENCE_SECONDS = 10.0  # the API waits so long for the next record of a worker
SOCKET_TIMEOUT_SECONDS = 5.0  # beyond the time that a command itself waits
TURN_SECONDS = 8.0  # a refused project keeps its turn so long; the official client asks again after 5
TURNS_TTL_SECONDS = 600
MAX_CONNECTIONS = 64
PREFIX = "tunery:trial"
REFUSED, ANSWERED = f"{PREFIX}:refused", f"{PREFIX}:answered"
QUEUE_UNAVAILABLE = (redis.RedisError, OSError)


class TrialSlot:
    """The worker's side. Every method raises QUEUE_UNAVAILABLE."""

    def __init__(self, redis_url: str, owner: str) -> None:
        self._owner = owner
        self._redis = redis.Redis.from_url(
            as_redis_py(redis_url),
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_timeout=POLL_SECONDS + SOCKET_TIMEOUT_SECONDS,
            decode_responses=True,
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

    async def ask(self, question: TrialQuestion, base_model: str) -> bool:
        """Claim a free slot whose host has the base model, and send the question there; False if there is none.

        A project that was refused in the last TURN_SECONDS, and whose last answer is older than that of this project,
        comes first: as many free slots as there are such projects are left to them.
        """
        client, project = self._client, question.project_id
        keys = [key async for key in client.scan_iter(match=f"{PREFIX}:idle:*", count=1_000)]
        slots = {key: json.loads(await client.get(key) or "[]") for key in keys}
        free = [key for key, models in slots.items() if base_model in models]
        seconds, microseconds = await client.time()
        now = seconds + microseconds / 1e6
        wanted = {model for key in free for model in slots[key]}
        for key in free[await self._projects_before(project, wanted, now) :]:
            if not await client.delete(key):
                continue
            ask = f"{PREFIX}:ask:{key.removeprefix(f'{PREFIX}:idle:')}"
            async with client.pipeline(transaction=True) as pipeline:
                # an earlier release does not know every field
                pipeline.rpush(ask, question.model_dump_json(exclude_defaults=True))
                pipeline.expire(ask, ASK_TTL_SECONDS)
                pipeline.zadd(ANSWERED, {project: now})
                pipeline.expire(ANSWERED, TURNS_TTL_SECONDS)
                pipeline.zrem(REFUSED, f"{project} {base_model}")
                await pipeline.execute()
            return True
        await client.zadd(REFUSED, {f"{project} {base_model}": now})
        await client.expire(REFUSED, TURNS_TTL_SECONDS)
        return False

    async def next_record(self, id: str, timeout_seconds: float) -> TrialRecord | None:
        """The next record of an answer; None after the timeout."""
        found = await self._client.blpop([f"{PREFIX}:answer:{id}"], timeout=timeout_seconds)
        return None if found is None else TrialRecord.model_validate_json(found[1])

    async def give_up(self, id: str) -> None:
        await self._client.set(f"{PREFIX}:gone:{id}", "1", ex=ANSWER_TTL_SECONDS)

    async def close(self) -> None:
        if "_client" in self.__dict__:
            await self._client.aclose()

    async def _projects_before(self, project: str, models: Collection[str], now: float) -> int:
        """The number of projects that were refused one of these models, and whose turn comes before this project's."""
        client: Any = self._client
        await client.zremrangebyscore(REFUSED, "-inf", now - TURN_SECONDS)
        refused = [member.split(" ", 1) for member in await client.zrange(REFUSED, 0, -1)]
        answered = dict(await client.zrange(ANSWERED, 0, -1, withscores=True))
        others = {other for other, model in refused if model in models and other != project}
        return sum(answered.get(other, 0.0) < answered.get(project, 0.0) for other in others)

    @cached_property
    def _client(self) -> aredis.Redis:
        """Made in the event loop that uses it."""
        pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=MAX_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_timeout=SILENCE_SECONDS + SOCKET_TIMEOUT_SECONDS,
            decode_responses=True,
        )
        return aredis.Redis.from_pool(pool)


def as_redis_py(url: str) -> str:
    """Convert kombu's `redis+socket://` to redis-py's `unix://`; other URLs are the same in both."""
    return url.replace("redis+socket://", "unix://", 1)
