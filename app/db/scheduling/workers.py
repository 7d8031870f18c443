"""Workers: each worker process writes a heartbeat every few seconds. Never commits."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, null, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from app.db.scheduling import measurements
from app.db.tables import DeviceLosses, Job, Worker
from app.domain.jobs.spec import JobSpec
from app.domain.planning.estimate import Device, DeviceGroup
from app.domain.scheduling.worker_capacity import JobRequirements, has_labels, has_model, worker_capacity, worker_device

STALE_AFTER = timedelta(days=1)


def heartbeat(session: Session, worker_id: str, queue: str, hostname: str, pid: int, about: dict[str, Any]) -> None:
    """Insert or update the row of a worker; `about` describes its device, models, labels and versions."""
    values: dict[str, Any] = {"queue": queue, "hostname": hostname, "pid": pid, "about": about}
    values |= {"seen_at": func.clock_timestamp(), "lost_at": null()}
    statement = upsert(Worker).values(id=worker_id, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def mark_lost(session: Session, silent_seconds: float) -> list[Worker]:
    """Mark the workers whose heartbeats have stopped; return those that were not marked before."""
    silent_since = func.clock_timestamp() - timedelta(seconds=silent_seconds)
    return list(
        session.scalars(
            update(Worker)
            .where(Worker.seen_at < silent_since, Worker.lost_at.is_(None))
            .values(lost_at=func.clock_timestamp())
            .returning(Worker)
        )
    )


def lost(session: Session) -> list[Worker]:
    """The workers that were marked as lost, the latest first; their rows are deleted after a day."""
    return list(session.scalars(select(Worker).where(Worker.lost_at.is_not(None)).order_by(Worker.lost_at.desc())))


def alive(session: Session, within_seconds: float = 60) -> list[Worker]:
    """The workers with a heartbeat within the last seconds."""
    since = func.clock_timestamp() - timedelta(seconds=within_seconds)
    is_of_slot = DeviceLosses.slot == func.split_part(Worker.id, "#", 1)
    query = select(Worker, DeviceLosses.out_of_service_at).outerjoin(DeviceLosses, is_of_slot)
    rows = session.execute(query.where(Worker.seen_at > since).order_by(Worker.id)).all()
    for worker, out_of_service_at in rows:
        worker.out_of_service_at = out_of_service_at
    return [worker for worker, _ in rows]


def busy(session: Session) -> list[Worker]:
    """The workers that hold a job."""
    return list(session.scalars(select(Worker).where(Worker.id.in_(select(Job.lease_owner)))))


def supported_exports(session: Session) -> frozenset[str]:
    """The types of export that living workers make; a worker of an earlier release names none."""
    return frozenset(type for worker in alive(session) for type in worker.about.get("exports", ()))


def gpu_workers(session: Session) -> list[Worker]:
    """The living workers that train, without those out of service."""
    return [worker for worker in alive(session) if worker.queue == "gpu" and worker.out_of_service_at is None]


def gpus_per_job(session: Session) -> int:
    """The GPUs of a job on the living workers that train on some, the fewest if they differ; 0 without one."""
    devices = [worker_device(worker.about) for worker in gpu_workers(session)]
    return min((device.gpus for device in devices if device and device.kind == "cuda"), default=0)


def candidate_devices(
    session: Session, spec: JobSpec, manifest_sha256: str, need: JobRequirements
) -> list[DeviceGroup]:
    """The kinds of devices of living workers that may take the job, with measurements of similar jobs on them."""
    counts: Counter[tuple[Device, int, int]] = Counter()
    for worker in gpu_workers(session):
        offer, device = worker_capacity(worker.about), worker_device(worker.about)
        if device and has_model(offer, need) and has_labels(offer, need):
            slots = offer.slots_per_gpu if offer.shares_gpus and offer.gpus == 1 else 1
            counts[device, slots, offer.slot_bytes] += 1
    return [
        DeviceGroup(
            device,
            count,
            measurements.similar(session, device.name, device.gpus, manifest_sha256, spec.quantization, spec.method),
            slots,
            slot_bytes,
        )
        for (device, slots, slot_bytes), count in counts.items()
    ]


def remove(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))


def delete_all(session: Session) -> None:
    """Delete all workers, in a restored database: they are of another service."""
    session.execute(delete(Worker))
    session.execute(delete(DeviceLosses))


def delete_stale(session: Session) -> None:
    session.execute(delete(Worker).where(Worker.seen_at < func.clock_timestamp() - STALE_AFTER))
