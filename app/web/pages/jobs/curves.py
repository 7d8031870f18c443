"""The losses of listed jobs: requested after the list itself is shown, and again only if a job has moved on.

A session keeps them, so that a list that is opened again requests only what has changed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from app.web.api_client import ApiClient, ApiError, Json

POINTS = 40
JOBS_PER_REQUEST = 25  # so that a request for long jobs stays short
PARALLEL_REQUESTS = 6
MAX_KEPT = 5_000  # curves and file names, each; a curve takes about a kilobyte


@dataclass(frozen=True)
class Curve:
    train_losses: list[float]
    best_valid_loss: float | None

    @property
    def last_train_loss(self) -> float | None:
        return self.train_losses[-1] if self.train_losses else None


class Curves:
    """The curves of jobs, and the names of their training files."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._curves: dict[str, tuple[Any, Curve]] = {}  # by job: its state as of the request
        self._filenames: dict[str, str] = {}
        self._limit = asyncio.Semaphore(PARALLEL_REQUESTS)

    def of(self, job: Json) -> Curve:
        """An empty one until it is there."""
        return self._curves.get(job["id"], (None, Curve([], None)))[1]

    def filename(self, job: Json) -> str | None:
        return self._filenames.get(job["training_file"])

    async def load(self, jobs: list[Json]) -> None:
        """Request what is missing or outdated. A failed request leaves its value unknown."""
        stale = [job for job in jobs if self._is_stale(job)]
        unnamed = {job["training_file"] for job in jobs} - self._filenames.keys()
        groups = [stale[start : start + JOBS_PER_REQUEST] for start in range(0, len(stale), JOBS_PER_REQUEST)]
        await asyncio.gather(*map(self._load_curves, groups), *map(self._load_filename, unnamed))

    def _is_stale(self, job: Json) -> bool:
        known = self._curves.get(job["id"])
        return bool(job["trained_steps"]) and (known is None or known[0] != _version(job))

    async def _load_curves(self, jobs: list[Json]) -> None:
        ids = ",".join(job["id"] for job in jobs)
        async with self._limit:
            try:
                found = await self._api.get("fine_tuning/loss_curves", jobs=ids, max_points=POINTS)
            except ApiError:
                return
        for job, curve in zip(jobs, found["data"], strict=True):
            _keep(self._curves, job["id"], (_version(job), Curve(curve["train_losses"], curve["best_valid_loss"])))

    async def _load_filename(self, file_id: str) -> None:
        async with self._limit:
            try:
                file = await self._api.get(f"files/{file_id}")
                _keep(self._filenames, file_id, str(file["filename"]))
            except ApiError as error:
                if error.status == 404:
                    _keep(self._filenames, file_id, "deleted file")


def _keep(found: dict[str, Any], name: str, value: Any) -> None:
    """Add a value; the oldest one makes room."""
    while len(found) >= MAX_KEPT:
        del found[next(iter(found))]
    found[name] = value


def _version(job: Json) -> tuple[Any, ...]:
    return job["status"], job["trained_steps"]
