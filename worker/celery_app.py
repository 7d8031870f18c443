"""The Celery worker:

    celery -A worker.celery_app worker -P threads -c 1 -Q gpu -n gpu0@%h --without-gossip --without-mingle
    celery -A worker.celery_app worker -P threads -c 1 -Q cpu -n cpu0@%h --without-gossip --without-mingle

Threads, as a task must hear of a shutdown while it runs: prefork sends it to the main process only, and the task runs
on until it is killed. One thread each, as a slot does one job at a time; validation is Python under the interpreter's
lock, so a second one wants a second process (`-n cpu1@%h`). The name before the @ is the slot's: keep it stable, it
is how a restarted worker finds the jobs that its predecessor held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery, signals

from app.job_queue import LOOK_FOR_WORK, make_celery
from app.log import configure_logging
from app.settings import Settings, load_settings
from worker import tasks
from worker.jobs.trainer_process import TRAINER
from worker.node.node import Station

_made: list[Celery] = []


def __getattr__(name: str) -> Celery:
    """`celery` is made when it is first asked for: importing this module needs no settings."""
    if name != "celery":
        raise AttributeError(name)
    if not _made:
        _made.append(make_worker(load_settings()))
    return _made[0]


def make_worker(settings: Settings, trainer: Sequence[str] = TRAINER) -> Celery:
    """A Celery app whose worker takes jobs. `trainer` is the command that trains; tests bring their own."""
    celery = make_celery(settings.redis_url)
    station = Station(settings, trainer)
    tasks.register(celery, station)
    _connect(settings, station)
    return celery


def _connect(settings: Settings, station: Station) -> None:
    """The slots start with the worker, not when it is ready: with Redis down it never is, and they find work anyway."""

    def configure(**_: Any) -> None:
        configure_logging(settings.log_json, settings.log_file)

    def open_station(sender: str, instance: Any, **_: Any) -> None:
        consumed = instance.app.amqp.queues.consume_from
        station.open(sender, [queue for queue in LOOK_FOR_WORK if queue in consumed])

    def stop_station(**_: Any) -> None:
        station.stop()

    def close_station(**_: Any) -> None:
        station.close()

    signals.setup_logging.connect(configure, weak=False)
    signals.celeryd_after_setup.connect(open_station, weak=False)
    signals.worker_shutting_down.connect(stop_station, weak=False)
    signals.worker_shutdown.connect(close_station, weak=False)
