"""The connections and settings that every job uses, opened once per process; writes to a bucket that fails for some
minutes, which are repeated, so that its restart loses no checkpoint; and a process that runs one loop until SIGTERM
or SIGINT: the reconciler, a sender.
"""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self, TypeVar

from sqlalchemy import Engine

from app.db.engine import DATABASE_UNAVAILABLE, Sessions, first_line, make_engine, make_sessions
from app.db.jobs.leases import Retries
from app.domain.artifacts.full_disk import is_disk_full
from app.domain.units import duration_text
from app.job_queue import WorkerNotifier
from app.log import configure_logging, get_logger
from app.settings import Settings, load_settings
from app.storage import Storage, StorageError, open_storage
from app.telemetry.exposition import start_metrics_server
from app.telemetry.tracing import configure_tracing

Result = TypeVar("Result")
STORAGE_RETRY_SECONDS = 2.0
THREAD_EXIT_TIMEOUT_SECONDS = 5

log = get_logger(__name__)
POOL_SIZE = 5  # connections for the job's writes, its lease, and the heartbeat of the worker's row
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Background(ABC):
    """A thread that runs while a block lasts, with the ids of the block for its log lines."""

    def __init__(self, name: str) -> None:
        self._ended = threading.Event()
        self._name = name

    def __enter__(self) -> Self:
        run_in_context = contextvars.copy_context().run
        self._thread = threading.Thread(target=run_in_context, args=(self._run,), name=self._name, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for its end, but not for long: it may hang in a statement, and a daemon thread blocks no exit."""
        self._ended.set()
        self._thread.join(THREAD_EXIT_TIMEOUT_SECONDS)

    @abstractmethod
    def _run(self) -> None:
        """Run until `_ended` is set."""


@contextmanager
def errors_logged(what: str) -> Iterator[None]:
    """Log an error of the block instead of raising it: neither an unavailable PostgreSQL nor a bug ends a loop."""
    try:
        yield
    except DATABASE_UNAVAILABLE as error:
        log.warning("database unavailable", during=what, error=first_line(error))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # its text has the path: enough for the operator
            log.error(f"{what} failed", error=str(error))
        else:
            log.exception(f"{what} failed")


class StorageOutage:
    """Repeats operations of storage. An outage that has lasted for the limit is not waited for again until it ends.

    The limit counts from the first failure, whichever operation saw it, so that a long outage delays a trainer's
    records once and not with each of them.
    """

    def __init__(self, stop: threading.Event, limit_seconds: float) -> None:
        self._stop = stop
        self._limit_seconds = limit_seconds
        self._began_at: float | None = None

    def retry(
        self, operation: Callable[[], Result], notify: Callable[[str], None], check: Callable[[], None]
    ) -> Result:
        """The result of `operation`. `notify` receives one message if it must be repeated, `check` runs before each
        repetition.

        Raises what `check` raises, and what `operation` raises: at the limit, when the worker stops, and at once for a
        full bucket and for every other error.
        """
        is_notified = False
        while True:
            try:
                result = operation()
            except StorageError as error:
                if is_disk_full(error) or self._is_over():
                    raise
                if not is_notified:
                    is_notified = True
                    log.warning("storage unavailable", error=str(error), cause=str(error.__cause__))
                    limit = duration_text(self._limit_seconds)
                    notify(f"Files cannot be stored: {error.strerror}. This is repeated for {limit}; nothing is lost")
                if self._stop.wait(STORAGE_RETRY_SECONDS):
                    raise
                check()
            else:
                self._began_at = None
                return result

    def _is_over(self) -> bool:
        now = time.monotonic()
        self._began_at = self._began_at or now
        return now - self._began_at >= self._limit_seconds


@dataclass(frozen=True)
class Resources:
    settings: Settings
    engine: Engine
    sessions: Sessions
    storage: Storage
    hints: WorkerNotifier
    stop: threading.Event = field(default_factory=threading.Event)  # set at shutdown: claim nothing, drain what runs

    @property
    def retries(self) -> Retries:
        """Of an attempt that crashed, or whose worker was lost."""
        return Retries(self.settings.requeue_delay_seconds, self.settings.max_crash_streak)

    @cached_property
    def storage_outage(self) -> StorageOutage:
        return StorageOutage(self.stop, self.settings.storage_retry_seconds)

    def close(self) -> None:
        self.hints.close()
        self.engine.dispose()


def open_resources(settings: Settings) -> Resources:
    """Create the resources without connecting: PostgreSQL and Redis may start later than this process."""
    engine = make_engine(settings.database_url, POOL_SIZE)
    storage = open_storage(settings.storage_dir, settings.s3_location)
    return Resources(settings, engine, make_sessions(engine), storage, WorkerNotifier(settings.redis_url))


class Service(Protocol):
    def run(self) -> None:
        """Run until `resources.stop` is set."""


def run_service(name: str, make_service: Callable[[Resources], Service]) -> None:
    """Run a service in a thread until a stop signal arrives, then let it finish its round."""
    settings = load_settings()
    configure_logging(settings.log_json, settings.log_file)
    resources = open_resources(settings)
    start_metrics_server(settings, name)
    tracer_provider = configure_tracing(settings, name)
    # `sigwait` instead of a handler: a handler that sets an Event for which its own thread waits can deadlock.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread = threading.Thread(target=make_service(resources).run, name=name)
    thread.start()
    signal.sigwait(STOP_SIGNALS)
    resources.stop.set()
    thread.join()
    resources.close()
    if tracer_provider is not None:
        tracer_provider.shutdown()
