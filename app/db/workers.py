"""Who is alive: each worker process says so every few seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.tables import Job, Worker

FORGET_AFTER = timedelta(days=1)


def seen(session: Session, worker_id: str, queue: str, hostname: str, pid: int, about: dict[str, Any]) -> None:
    values = {"queue": queue, "hostname": hostname, "pid": pid, "about": about, "seen_at": func.clock_timestamp()}
    statement = upsert(Worker).values(id=worker_id, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def alive(session: Session, within_seconds: float = 60) -> list[Worker]:
    since = func.clock_timestamp() - timedelta(seconds=within_seconds)
    return list(session.scalars(select(Worker).where(Worker.seen_at > since).order_by(Worker.id)))


def busy(session: Session) -> list[Worker]:
    """Those that hold a job."""
    return list(session.scalars(select(Worker).where(Worker.id.in_(select(Job.lease_owner)))))


def gone(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))


def forget_old(session: Session) -> None:
    session.execute(delete(Worker).where(Worker.seen_at < func.clock_timestamp() - FORGET_AFTER))
