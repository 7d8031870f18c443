"""The two hints, Celery tasks that wake a worker. They carry no data and may be lost: PostgreSQL is the queue."""

from __future__ import annotations

from celery import Celery

from app.job_queue import LOOK_FOR_WORK
from worker.node.worker_node import WorkerNode


def register(celery: Celery, node: WorkerNode) -> None:
    """Register the tasks. A task lasts until the slot is idle again, so that further hints go to idle workers
    meanwhile."""

    @celery.task(name=LOOK_FOR_WORK["gpu"])  # type: ignore[untyped-decorator]
    def train() -> None:
        node.handle_hint("gpu")

    @celery.task(name=LOOK_FOR_WORK["cpu"])  # type: ignore[untyped-decorator]
    def validate() -> None:
        node.handle_hint("cpu")
