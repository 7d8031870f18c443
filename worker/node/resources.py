"""The connections and settings that every job uses, opened once per process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sqlalchemy import Engine

from app.db.engine import Sessions, make_engine, make_sessions
from app.job_queue import WorkerNotifier
from app.settings import Settings
from app.storage import LocalStorage, Storage

POOL_SIZE = 5  # connections for the job's writes, its lease, and the heartbeat of the worker's row


@dataclass(frozen=True)
class Resources:
    settings: Settings
    engine: Engine
    sessions: Sessions
    storage: Storage
    hints: WorkerNotifier
    stop: threading.Event = field(default_factory=threading.Event)  # set at shutdown: claim nothing, drain what runs

    def close(self) -> None:
        self.hints.close()
        self.engine.dispose()


def open_resources(settings: Settings) -> Resources:
    """Create the resources without connecting: PostgreSQL and Redis may start later than this process."""
    engine = make_engine(settings.database_url, POOL_SIZE)
    storage = LocalStorage(settings.storage_dir)
    return Resources(settings, engine, make_sessions(engine), storage, WorkerNotifier(settings.redis_url))
