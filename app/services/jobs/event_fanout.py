"""Fan-out of job events: each event of a followed job is read once in this process, however many clients follow it.

Numbers of events have no gaps and are committed in order, so a read of the events above the last known number misses
none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from app.db.fast_reads import job_reads
from app.db.fast_reads.pool import AsyncConnections
from app.domain.jobs.states import TERMINAL

MAX_KEPT_EVENTS = 1_000  # for followers that are a little behind; one that is further behind reads by itself

Render = Callable[[Any], bytes]


@dataclass(frozen=True)
class EventBatch:
    """Consecutive events of a job, rendered for the wire."""

    events: list[bytes]
    last_seq: int
    has_more: bool
    final_state: str | None  # the state of a finished job whose last event is in this batch


class JobEventBuffer:
    """The newest events of one job that this process has read, without a gap."""

    def __init__(self, connections: AsyncConnections, render: Render, job_id: str) -> None:
        self.followers = 0
        self._connections = connections
        self._render = render
        self._job_id = job_id
        self._reading = asyncio.Lock()
        self._kept: EventBatch | None = None
        self._read_at = -1.0

    async def read_after(self, seq: int, notified_at: float) -> EventBatch:
        """The events above `seq`. Queries PostgreSQL unless a read began after `notified_at`. Raises Unavailable."""
        async with self._reading:
            kept = self._kept or EventBatch([], seq, True, None)
            if kept.last_seq - len(kept.events) <= seq <= kept.last_seq:
                if seq == kept.last_seq and (kept.has_more or self._read_at < notified_at):
                    began_at, new = asyncio.get_running_loop().time(), await self._fetch(seq)
                    kept = replace(new, events=[*kept.events, *new.events][-MAX_KEPT_EVENTS:])
                    self._read_at = began_at
                self._kept = kept
                first = kept.last_seq - len(kept.events)
                return replace(kept, events=kept.events[seq - first :])
        return await self._fetch(seq)

    async def _fetch(self, seq: int) -> EventBatch:
        rows = await job_reads.events_after(self._connections, self._job_id, seq)
        events = [row for row in rows if row.id is not None]
        last_seq = events[-1].seq if events else seq
        is_over = bool(rows) and rows[-1].state in TERMINAL and last_seq >= rows[-1].event_seq
        return EventBatch(
            [self._render(row) for row in events],
            last_seq,
            has_more=len(events) == job_reads.MAX_EVENTS,
            final_state=rows[-1].state if is_over else None,
        )


class EventFanout:
    """The event buffers of all jobs that are followed at the moment."""

    def __init__(self, connections: AsyncConnections, render: Render) -> None:
        self._connections = connections
        self._render = render
        self._buffers: dict[str, JobEventBuffer] = {}

    @contextmanager
    def follow(self, job_id: str) -> Iterator[JobEventBuffer]:
        buffer = self._buffers.setdefault(job_id, JobEventBuffer(self._connections, self._render, job_id))
        buffer.followers += 1
        try:
            yield buffer
        finally:
            buffer.followers -= 1
            if not buffer.followers:
                self._buffers.pop(job_id, None)
