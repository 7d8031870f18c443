"""The Celery worker:

    celery -A worker.celery_app worker -P threads -c 1 -Q gpu -n gpu0@%h --without-gossip --without-mingle
    celery -A worker.celery_app worker -P threads -c 1 -Q cpu -n cpu0@%h --without-gossip --without-mingle

The pool is `threads`, because a running task must learn of a shutdown: prefork signals the main process only, and the
task would run until it is killed. The concurrency is 1, because a slot runs one job at a time; validation is Python
code under the global interpreter lock, so a second validation needs a second process (`-n cpu1@%h`). The name before
the @ is the slot's. Keep it stable: by it a restarted worker finds the jobs that its previous incarnation held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, bootsteps, signals

from app.job_queue import LOOK_FOR_WORK, make_celery
from app.log import configure_logging
from app.settings import Settings, load_settings
from worker import tasks
from worker.jobs.trainer_process import TRAINER_COMMAND
from worker.node.worker_node import WorkerNode

_apps: list[Celery] = []


def __getattr__(name: str) -> Celery:
    """Create `celery` on first access, so that importing this module needs no settings."""
    if name != "celery":
        raise AttributeError(name)
    if not _apps:
        _apps.append(make_worker(load_settings()))
    return _apps[0]


def make_worker(settings: Settings, trainer: Sequence[str] = TRAINER_COMMAND) -> Celery:
    """Create a Celery app whose worker runs jobs. `trainer` is the command of the training program."""
    celery = make_celery(settings.redis_url)
    node = WorkerNode(settings, trainer)
    tasks.register(celery, node)
    _connect(celery, settings, node)
    return celery


def _connect(celery: Celery, settings: Settings, node: WorkerNode) -> None:
    """Open the node when Celery has installed its signal handlers, and close it when the worker stops."""

    class StartSlots(bootsteps.StartStopStep):  # type: ignore[misc]
        """Not at `celeryd_after_setup`: until Celery's handlers are installed, SIGTERM kills a process whose row is
        already written. Not at `worker_ready`: without Redis it never comes, and the slots poll PostgreSQL."""

        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            consumed = worker.app.amqp.queues.consume_from
            node.open(worker.hostname, [queue for queue in LOOK_FOR_WORK if queue in consumed])

    def configure(**_: Any) -> None:
        configure_logging(settings.log_json, settings.log_file)

    def stop_node(**_: Any) -> None:
        node.stop()

    def close_node(**_: Any) -> None:
        node.close()

    celery.steps["worker"].add(StartSlots)
    signals.setup_logging.connect(configure, weak=False)
    signals.worker_shutting_down.connect(stop_node, weak=False)
    signals.worker_shutdown.connect(close_node, weak=False)
