"""The two hints a worker understands. They carry nothing and promise nothing: PostgreSQL is the queue."""

from __future__ import annotations

from celery import Celery

from app.job_queue import LOOK_FOR_WORK
from worker.node.node import Station


def register(celery: Celery, station: Station) -> None:
    """A task stays until the slot is idle again, so that hints which come meanwhile go to workers that are."""

    @celery.task(name=LOOK_FOR_WORK["gpu"])  # type: ignore[untyped-decorator]
    def train() -> None:
        station.look_for_work("gpu")

    @celery.task(name=LOOK_FOR_WORK["cpu"])  # type: ignore[untyped-decorator]
    def validate() -> None:
        station.look_for_work("cpu")
