"""The connections and settings that every job uses, opened once per process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property

from sqlalchemy import Engine

from app.db.engine import Sessions, make_engine, make_sessions
from app.job_queue import WorkerNotifier
from app.settings import Settings
from app.storage import Storage, open_storage
from worker.node.storage_outage import StorageOutage

POOL_SIZE = 5  # connections for the job's writes, its lease, and the heartbeat of the worker's row


@dataclass(frozen=True)
class Resources:
    settings: Settings
    engine: Engine
    sessions: Sessions
    storage: Storage
    hints: WorkerNotifier
    stop: threading.Event = field(default_factory=threading.Event)  # set at shutdown: claim nothing, drain what runs

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
