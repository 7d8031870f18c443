"""The ids of a project's changed jobs: one stream of the API, shared by all pages of a session."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator

from app.web.api_client import ApiClient, ApiError

RETRY_SECONDS = 2.0
SILENCE_SECONDS = 40.0  # the API sends a comment every 15 s


class Changes:
    """The jobs that changed since the last wait, for one page."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._job_ids: set[str | None] = set()

    def add(self, job_id: str | None) -> None:
        self._job_ids.add(job_id)
        self._arrived.set()

    async def wait(self, timeout_seconds: float) -> set[str | None]:
        """The ids of changed jobs, None among them if any job may have changed; empty after a timeout."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), timeout_seconds)
        self._arrived.clear()
        job_ids, self._job_ids = self._job_ids, set()
        return job_ids


class ChangeFeed:
    """Reads the stream while a page subscribes; connects again after an error."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._subscribers: set[Changes] = set()
        self._reader: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Changes]:
        changes = Changes()
        self._subscribers.add(changes)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)
            if not self._subscribers:
                self._reader.cancel()

    async def _read(self) -> None:
        while self._subscribers:
            try:
                async with self._api.stream("GET", "events/stream", SILENCE_SECONDS) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data:"):
                            self._publish(json.loads(line.removeprefix("data:")).get("job_id"))
            except (ApiError, ValueError) as error:
                if isinstance(error, ApiError) and error.status == 401:
                    return
            await asyncio.sleep(RETRY_SECONDS)

    def _publish(self, job_id: str | None) -> None:
        for changes in self._subscribers:
            changes.add(job_id)
