"""Evaluations: a queue with leases (`leases`). Every change of the state is written to the job as well, with an
event. Never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal, null, select, update
from sqlalchemy.orm import Session

from app.db import files
from app.db.ids import new_id
from app.db.jobs import checkpoints, events, leases
from app.db.jobs.leases import Lease, Retries
from app.db.scheduling import device_losses, fair_queue, gpu_reservations
from app.db.tables import Checkpoint, Evaluation, EvaluationAttempt, File, Job
from app.domain.evaluations.graders import EvaluationSettings, make_plan
from app.domain.evaluations.headline import record_of
from app.domain.evaluations.summary import DeliveryVerdict, delivery_verdict
from app.domain.jobs.spec import JobSpec
from app.domain.jobs.states import UNFINISHED_WORK, WorkState
from app.domain.scheduling.fair_share import HALF_LIFE_SECONDS
from app.domain.scheduling.worker_capacity import WorkerCapacity

REPLACED_FILES_KEPT = timedelta(days=1)


def insert(session: Session, job: Job, checkpoint: Checkpoint, file: File, settings: EvaluationSettings) -> Evaluation:
    """Insert an evaluation in `queued`, with the plan before a worker has read the file."""
    rows = None if file.line_count is None else min(file.line_count, settings.max_rows)
    plan = make_plan(settings, rows, None, seconds_per_answer(session, job.base_model), job.progress)
    evaluation = Evaluation(
        id=new_id("fteval"),
        file_id=file.id,
        settings=settings.model_dump(mode="json"),
        plan=plan.model_dump(),
        **checkpoints.columns_of(job, checkpoint),
    )
    session.add(evaluation)
    session.flush()
    session.refresh(evaluation)
    _report(session, evaluation, f"Evaluation {evaluation.id} of {evaluation.model} was queued")
    return evaluation


def cancel(session: Session, evaluation: Evaluation) -> bool:
    """Cancel an unfinished evaluation, which fences its holder; False if it has ended."""
    is_unfinished = and_(Evaluation.id == evaluation.id, Evaluation.state.in_(UNFINISHED_WORK))
    columns = leases.finished_columns(WorkState.CANCELLED)
    cancelled = leases.update_where(session, Evaluation, is_unfinished, columns)
    if cancelled is None:
        session.refresh(evaluation)
        return False
    _report(session, cancelled, f"Evaluation {cancelled.id} was cancelled", "warn")
    return True


def unfinished_count(session: Session, project_id: str) -> int:
    """The number of queued and running evaluations of a project."""
    query = select(func.count()).where(Evaluation.project_id == project_id, Evaluation.state.in_(UNFINISHED_WORK))
    return session.scalar(query) or 0


def seconds_per_answer(session: Session, base_model: str) -> float | None:
    """The measured time per answer of the newest finished evaluation with this base model."""
    query = (
        select(Evaluation.summary["seconds_per_answer"].as_float())
        .where(Evaluation.base_model == base_model, Evaluation.state == WorkState.SUCCEEDED)
        .order_by(Evaluation.seq.desc())
        .limit(1)
    )
    return session.scalar(query)


def verdict_on_delivery(session: Session, job: Job) -> DeliveryVerdict:
    """Whether the job's adapter may be delivered: the newest evaluation of the result with `promote_if` decides.

    Without `promote_if` it may. Cancelled evaluations do not count, unless there are no others.
    """
    rows = session.scalars(
        select(Evaluation)
        .where(Evaluation.job_id == job.id, Evaluation.model == job.fine_tuned_model)
        .order_by(Evaluation.seq.desc())
    ).all()
    gates = [row for row in rows if row.settings.get("promote_if") is not None]
    gate = next((row for row in gates if row.state != WorkState.CANCELLED), gates[0] if gates else None)
    request = JobSpec.model_validate(job.spec).evaluation
    is_requested = request is not None and request.promote_if is not None
    if gate is None:
        return delivery_verdict(is_requested, None, None)
    return delivery_verdict(True, WorkState(gate.state), gate.summary)


def newest_headline(session: Session, model: str) -> dict[str, Any] | None:
    """The id, the file and the headline of the newest evaluation of a model that succeeded and had graders."""
    query = select(Evaluation).where(Evaluation.model == model, Evaluation.state == WorkState.SUCCEEDED)
    rows = session.scalars(query.order_by(Evaluation.seq.desc()))
    return next(filter(None, (record_of(row.id, row.file_id, row.summary) for row in rows)), None)


# --- the holder -------------------------------------------------------------------------------------------------------


def claim(
    session: Session,
    owner: str,
    ttl_seconds: float,
    capacity: WorkerCapacity | None = None,
    half_life_seconds: float = HALF_LIFE_SECONDS,
) -> Evaluation | None:
    """Claim the next claimable evaluation that fits the worker: the oldest of the project with the lowest share, which
    is the one that orders jobs. None if there is none.

    Generation needs less memory than the job's training, so its requirements are those of the job. On a GPU that
    several slots share it reserves memory as a job does; a base model that is not quantized needs the whole GPU.
    """
    if not leases.has_claimable(session, Evaluation) or device_losses.is_out_of_service(session, owner):
        return None
    is_reserved = False
    if capacity is not None and capacity.shares_gpus:
        fair_queue.lock_claims(session, "train")
        reserved = gpu_reservations.reserved_bytes(session, capacity, owner)
        if not capacity.has_room_for_slot(reserved):
            return None
        is_reserved = reserved > 0
    shares = fair_queue.select_shares(half_life_seconds)
    next_id = (
        select(Evaluation.id)
        .join(Job, Job.id == Evaluation.job_id)
        .join(shares, shares.c.project_id == Evaluation.project_id)
        .where(leases.is_claimable(Evaluation), *_fits(capacity, is_reserved))
        .order_by(shares.c.share, Evaluation.seq)
    )
    columns = {
        "progress": null(),
        "estimated_finish": null(),
        "started_at": func.clock_timestamp(),
        "worker": owner,
        "gpu_uuids": null(),
        "budget_bytes": null(),
    }
    evaluation = leases.claim_first(session, Evaluation, next_id, owner, ttl_seconds, **columns)
    if evaluation is None:
        return None
    gpus = 1.0
    if capacity is not None:
        gpus = _reserve_gpus(session, evaluation, capacity)
    session.add(
        EvaluationAttempt(
            evaluation_id=evaluation.id,
            attempt=evaluation.attempt,
            project_id=evaluation.project_id,
            worker=owner,
            gpus=gpus,
        )
    )
    session.flush()
    _report(session, evaluation, f"Evaluation {evaluation.id} started")
    return evaluation


def _reserve_gpus(session: Session, evaluation: Evaluation, capacity: WorkerCapacity) -> float:
    """Reserve memory on shared GPUs; the GPUs that the attempt has, with a part of one for a slot."""
    needed_bytes = session.get_one(Job, evaluation.job_id).needed_cuda_bytes
    if evaluation.settings.get("base_precision") != "trained":
        needed_bytes = None
    if capacity.shares_gpus:
        evaluation.gpu_uuids, evaluation.budget_bytes = [*capacity.gpu_uuids], capacity.budget_bytes(needed_bytes)
    return capacity.gpus * capacity.gpu_share(needed_bytes)


def succeed(session: Session, lease: Lease, message: str, **result: Any) -> Evaluation:
    """End the attempt with a result: `precision`, `summary` and the ids of the files. Raises FencedError."""
    evaluation = leases.update_held(session, Evaluation, lease, **leases.finished_columns(WorkState.SUCCEEDED) | result)
    _report(session, evaluation, message)
    return evaluation


def publish_adapter(
    session: Session, evaluation: Evaluation, changed: Sequence[File], archive: File, manifest: dict[str, Any]
) -> None:
    """Publish the adapter with the card and the manifest that name this evaluation, which has just succeeded.

    `changed` are inserted, and deleted again if a newer evaluation has done the same, or the checkpoint or a file of it
    was deleted. What they replace expires after a day: a client may have read its ids.
    """
    checkpoint = session.get_one(Checkpoint, evaluation.checkpoint_id, with_for_update={"key_share": True})
    found = files.get_visible(session, checkpoint.all_file_ids, is_locking=True)
    newest = newest_headline(session, evaluation.model)  # `succeed` has locked the job, so no other one ends now
    is_newest = newest is not None and newest["id"] == evaluation.id
    is_same = checkpoint.name == evaluation.model and checkpoint.retired_at is None
    if not (is_newest and is_same and found.keys() == set(checkpoint.all_file_ids)):
        files.delete_all(session, [file.id for file in changed])
        return
    for file_id in found.keys() - set(checkpoint.file_ids):
        found[file_id].expires_at = func.clock_timestamp() + REPLACED_FILES_KEPT
    by_name = {found[id].filename: found[id] for id in checkpoint.file_ids} | {file.filename: file for file in changed}
    checkpoint.evaluated_file_ids = [file.id for file in by_name.values()]
    checkpoint.archive_file_id = files.insert_archive(session, archive, by_name.values()).id
    checkpoint.manifest = manifest
    columns = {
        "adapter_sha256": archive.sha256,
        "adapter_bytes": archive.bytes,
        "adapter_archive_file_id": archive.id,
    }
    is_result = and_(Job.id == evaluation.job_id, Job.fine_tuned_model == evaluation.model)
    session.execute(update(Job).where(is_result).values(columns))


def end_attempt(
    session: Session, evaluation: Evaluation, code: str, message: str, retries: Retries | None
) -> Evaluation:
    """End a failed attempt as `leases.end_attempt` does, and report it to the job."""
    ended = leases.end_attempt(session, evaluation, code, message, retries)
    text, level = f"Evaluation {ended.id} will be tried again: {message}", "warn"
    if ended.state == WorkState.FAILED:
        text, level = f"Evaluation {ended.id} failed ({ended.error_code}): {ended.error_message}", "error"
    _report(session, ended, text, level)
    return ended


def _report(session: Session, evaluation: Evaluation, message: str, level: str = "info") -> None:
    """Append an event to the job, and show the evaluation in it unless it already shows a newer one."""
    shown = {
        "id": evaluation.id,
        "seq": evaluation.seq,
        "status": evaluation.state,
        "file": evaluation.file_id,
        "precision": evaluation.precision,
        "summary": evaluation.summary,
        "error": evaluation.error,
    }
    is_newest = func.coalesce(Job.evaluation["seq"].as_integer(), 0) <= evaluation.seq
    newest = case((is_newest, literal(shown, Job.__table__.c.evaluation.type)), else_=Job.evaluation)
    data = {"evaluation": evaluation.id} | ({"summary": evaluation.summary} if evaluation.summary else {})
    events.update_job(session, Job.id == evaluation.job_id, message, level, data=data, evaluation=newest)


def _fits(capacity: WorkerCapacity | None, is_reserved: bool = False) -> list[ColumnElement[bool]]:
    """SQL conditions: the worker has the base model, the job's labels and its memory.

    Of a GPU that is partly reserved, the memory of a slot.
    """
    if capacity is None:
        return []
    needed_bytes = Job.needed_cuda_bytes if capacity.kind == "cuda" else Job.needed_cpu_bytes
    conditions = [func.coalesce(needed_bytes, 0) <= capacity.usable_bytes]
    if is_reserved:
        is_as_trained = Evaluation.settings["base_precision"].as_string() == "trained"
        conditions += [needed_bytes <= capacity.usable_slot_bytes, is_as_trained]
    if capacity.models is not None:
        conditions.append(Evaluation.base_model.in_(sorted(capacity.models)))
    if capacity.labels is not None:
        conditions.append(Job.worker_labels.contained_by(sorted(capacity.labels)))
    return conditions
