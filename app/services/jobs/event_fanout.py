"""Events of jobs that somebody follows: read once in this process, however many follow.

Numbers of events have no gaps and are committed in order, so "those above the last one I have" misses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.db.fast_reads import jobs
from app.db.fast_reads.pool import AsyncConnections
from app.domain.jobs.states import TERMINAL

MAX_KEPT_EVENTS = 1_000  # for those who are a little behind; who is further behind reads for itself

Render = Callable[[Any], bytes]


@dataclass(frozen=True)
class EventBatch:
    """The next events for somebody, as they go over the wire."""

    events: list[bytes]
    last_seq: int
    has_more: bool
    final_state: str | None  # of a job that is over, with its last event: nothing comes after


class JobEventBuffer:
    """One job's. It keeps the newest events it has read, without a gap."""

    def __init__(self, connections: AsyncConnections, render: Render, job_id: str) -> None:
        self.followers = 0
        self._connections = connections
        self._render = render
        self._job_id = job_id
        self._reading = asyncio.Lock()
        self._kept = EventBatch([], 0, True, None)
        self._is_empty = True
        self._read_at = -1.0

    async def after(self, seq: int, heard_at: float) -> EventBatch:
        """What follows `seq`. Asks PostgreSQL only if nobody has since `heard_at`. Raises Unavailable."""
        async with self._reading:
            if self._is_empty:
                self._kept, self._is_empty = EventBatch([], seq, True, None), False
            first = self._kept.last_seq - len(self._kept.events)
            if first <= seq <= self._kept.last_seq:
                if seq == self._kept.last_seq and (self._kept.has_more or self._read_at < heard_at):
                    await self._read_on()
                    first = self._kept.last_seq - len(self._kept.events)
                kept = self._kept
                return EventBatch(kept.events[seq - first :], kept.last_seq, kept.has_more, kept.final_state)
        return await self._read(seq)

    async def _read_on(self) -> None:
        began = asyncio.get_running_loop().time()
        new = await self._read(self._kept.last_seq)
        events = [*self._kept.events, *new.events][-MAX_KEPT_EVENTS:]
        self._kept, self._read_at = EventBatch(events, new.last_seq, new.has_more, new.final_state), began

    async def _read(self, seq: int) -> EventBatch:
        rows = await jobs.events_after(self._connections, self._job_id, seq)
        events = [row for row in rows if row.id is not None]
        last_seq = events[-1].seq if events else seq
        is_over = bool(rows) and rows[-1].state in TERMINAL and last_seq >= rows[-1].event_seq
        has_more = len(events) == jobs.MAX_EVENTS
        return EventBatch(
            [self._render(row) for row in events], last_seq, has_more, rows[-1].state if is_over else None
        )


class EventFanout:
    def __init__(self, connections: AsyncConnections, render: Render) -> None:
        self._connections = connections
        self._render = render
        self._feeds: dict[str, JobEventBuffer] = {}

    @contextmanager
    def follow(self, job_id: str) -> Iterator[JobEventBuffer]:
        feed = self._feeds.setdefault(job_id, JobEventBuffer(self._connections, self._render, job_id))
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                self._feeds.pop(job_id, None)
