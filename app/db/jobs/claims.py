"""The claim of jobs for validation and training, and what their holder writes under the lease (`leases`).

Two modules change a job's state: this one for the holder, app.db.jobs.jobs for the user (cancel, pause, resume). A
trigger (migrations/initial_schema.sql) refuses transitions that app.domain.jobs.states does not allow. Never commits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Double, cast, func, literal, null, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app.db.jobs import events, leases
from app.db.jobs.jobs import close_attempt
from app.db.jobs.leases import FencedError, Lease, Retries
from app.db.scheduling import device_losses, fair_queue, gpu_reservations
from app.db.scheduling.fair_queue import Kind
from app.db.tables import Attempt, Job
from app.domain.artifacts.full_disk import WAITING_FOR_STORAGE, pause_seconds
from app.domain.jobs.states import CRASHES, TERMINAL, Desired, JobState, Reason
from app.domain.scheduling.fair_share import HALF_LIFE_SECONDS
from app.domain.scheduling.worker_capacity import WorkerCapacity
from app.domain.units import duration_text

CLAIMED_STATE: dict[Kind, JobState] = {"validate": JobState.VALIDATING, "train": JobState.QUEUED}
STARTED_MESSAGE: dict[Kind, str] = {"validate": "Validating training file: {files}", "train": "Fine-tuning job started"}
STORAGE_WAIT_SECONDS = 86_400.0
AT_ONCE = Retries(0.0, 3)
TWO_DEVICES_LOST = (
    "The GPUs of two workers failed while the job ran on them, without progress between; it is not tried on a third"
)


class NoLongerDesiredError(RuntimeError):
    """The lease is valid, but the user has requested a pause, so the job must not succeed now."""


def claim(
    session: Session,
    kind: Kind,
    owner: str,
    ttl_seconds: float,
    offer: WorkerCapacity | None = None,
    half_life_seconds: float = HALF_LIFE_SECONDS,
) -> Job | None:
    """Claim the next job of the fair queue that fits the worker's capacity `offer`; None if there is none.

    In the caller's transaction: checks without a lock whether any job is claimable and the worker in service, the lock
    of claims, the UPDATE that selects and takes the row, and the inserts of the attempt and its event. The selection
    skips locked rows, so that a concurrent cancel or pause of a job blocks no worker.

    On a GPU that several slots share, the attempt reserves its memory. While a part of the GPU is reserved, a job that
    needs it whole is not claimed, and no later job passes it; otherwise small jobs would keep it waiting forever.
    """
    if not has_claimable_job(session, kind) or (kind == "train" and device_losses.is_out_of_service(session, owner)):
        return None
    fair_queue.lock_claims(session, kind)
    fits_in_rest: list[ColumnElement[bool]] = []
    if offer is not None and offer.shares_gpus and (reserved := gpu_reservations.reserved_bytes(session, offer, owner)):
        if not offer.has_room_for_slot(reserved):
            return None
        fits_in_rest = [Job.needed_cuda_bytes <= offer.usable_slot_bytes]
    next_id = (
        fair_queue.select_training_job(offer, half_life_seconds)
        if kind == "train"
        else fair_queue.select_job_to_validate()
    )
    if fits_in_rest:
        next_id = select(Job.id).where(Job.id == next_id, *fits_in_rest).scalar_subquery()
    columns = events.next_event_seq() | _started_columns(kind)
    job = next(iter(leases.claim(session, Job, next_id, owner, ttl_seconds, **columns)), None)
    if job is None:
        return None
    if kind == "validate":
        fair_queue.record_validation_turn(session, job.project_id)
    session.add(
        Attempt(
            job_id=job.id,
            attempt=job.attempt,
            project_id=job.project_id,
            kind=kind,
            worker=owner,
            **(_held_gpus(offer, job) if offer else {}),
        )
    )
    events.append_event(session, job, _started_message(kind, job))
    return job


def append_event(
    session: Session,
    lease: Lease,
    message: str,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
    event_id: str | None = None,
    **columns: Any,
) -> Job:
    """Append an event to the held job and update columns of its row. Raises FencedError."""
    is_held = leases.held_by(Job, lease)
    job = events.update_job(session, is_held, message, level, type, data, event_id, **columns)
    if job is None:
        raise FencedError(lease.row_id)
    return job


def progress_with_finish(progress: Mapping[str, Any], seconds_left: float | None) -> ColumnElement[Any]:
    """The value of `progress` with the end of the job, in seconds since 1970 by PostgreSQL's clock.

    It is fixed here: computed at each poll, it would move during a long step.
    """
    if seconds_left is None:
        return literal({**progress, "estimated_finish": None}, JSONB)
    finish = func.floor(func.extract("epoch", func.clock_timestamp()) + cast(seconds_left, Double))
    return literal(dict(progress), JSONB).concat(func.jsonb_build_object("estimated_finish", finish))


def finish_held_attempt(
    session: Session,
    lease: Lease,
    reason: Reason,
    message: str,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
    **options: Any,
) -> Job:
    """End the held attempt as `finish_attempt` does.

    A success requires `desired = 'run'` in addition to the lease. Raises FencedError, NoLongerDesiredError.
    """
    job = leases.lock_held(session, Job, lease)
    if reason == Reason.DONE and job.desired != Desired.RUN:
        raise NoLongerDesiredError(lease.row_id)
    return finish_attempt(session, job, reason, message, level, data, **options)


def finish_validation(
    session: Session, lease: Lease, message: str, data: Mapping[str, Any] | None = None, **columns: Any
) -> Job:
    """End a successful validation (`validating_files` -> `queued`), and update columns. Raises FencedError."""
    ended: dict[str, Any] = {"state": JobState.QUEUED, "phase": null(), "crash_streak": 0}
    job = append_event(session, lease, message, data=data, **leases.RELEASED | ended | columns)
    close_attempt(session, job.id, Reason.DONE)
    return job


def has_claimable_job(session: Session, kind: Kind) -> bool:
    """Whether there is a job of this kind that a worker could claim now, whatever its requirements."""
    is_claimable = (
        Job.state == CLAIMED_STATE[kind],
        Job.lease_owner.is_(None),
        Job.desired == Desired.RUN,
        Job.run_after <= func.clock_timestamp(),
    )
    return session.scalar(select(Job.id).where(*is_claimable).limit(1)) is not None


def finish_attempt(
    session: Session,
    job: Job,
    reason: Reason,
    message: str,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
    param: str | None = None,
    retries: Retries = AT_ONCE,
    storage_wait_seconds: float = STORAGE_WAIT_SECONDS,
    **columns: Any,
) -> Job:
    """End the current attempt of a job whose row the caller has locked: its holder, or the reaper of expired leases.

    `reason` decides the next state; state, lease, attempt, event and `columns` change together. A crash is retried
    after the delay of `retries`, doubled with each consecutive crash, and the last of them fails the job, as the loss
    of the GPUs of two workers does.
    """
    outcome = reason
    streak = job.crash_streak + 1 if reason in CRASHES else job.crash_streak
    if reason in CRASHES and streak >= retries.max_streak:
        outcome = Reason.WORKER_CRASH_LOOP
        message = f"{message}; gave up after {streak} attempts in a row that ended like this"
    if job.lease_owner is not None and job.state == JobState.RUNNING:
        device_losses.count(session, job.lease_owner, job.id, reason)
        if reason == Reason.DEVICE_LOST and device_losses.was_elsewhere(session, job.id, job.lease_owner):
            outcome, message = Reason.WORKER_CRASH_LOOP, TWO_DEVICES_LOST
    state = _next_state(job, outcome)
    if reason in CRASHES and state == JobState.QUEUED:
        message = f"{message}; the job is queued again"
    values: dict[str, Any] = {
        "state": state,
        "phase": null(),
        "reason": outcome,
        "crash_streak": streak,
        "yield_requested_at": null(),
        "times_yielded": Job.times_yielded + (1 if reason == Reason.PREEMPTED else 0),
        "run_after": leases.expiry(retries.delay_seconds * 2 ** max(0, streak - 1)),
        **leases.RELEASED,
        **columns,
    }
    if outcome == Reason.STORAGE_FULL:
        values["state"], waiting, sentence = _state_on_full_disk(session, job, state, storage_wait_seconds)
        values, message, level = values | waiting, f"{message} {sentence}", "warn"
    if state in TERMINAL:
        values["finished_at"] = func.clock_timestamp()
    if state == JobState.FAILED:
        values |= {"error_code": outcome, "error_message": message, "error_param": param}
        level = "error"
    event = {"reason": outcome, **(data or {})}
    ended = events.update_job(session, Job.id == job.id, message, level, data=event, **values)
    assert ended is not None, "the caller has locked it"
    close_attempt(session, job.id, reason)
    return ended


def _state_on_full_disk(
    session: Session, job: Job, state: JobState, limit_seconds: float
) -> tuple[JobState, dict[str, Any], str]:
    """(state, columns, sentence for the event) of a job that would go to `state` after an attempt on a full disk.

    The caller has locked the row. A validation cannot be paused: it is retried without a limit.
    """
    waited_seconds, waiting = leases.wait_for_storage(session, job.storage_full_since)
    if state == JobState.QUEUED and waited_seconds >= limit_seconds:
        text = f"The disk has been full for {duration_text(limit_seconds)}, so the job is paused. It keeps its last "
        return JobState.PAUSED, {"storage_full_since": null()}, f"{text}snapshot: free space, then resume it."
    if state == JobState.PAUSED:
        return (
            state,
            {"storage_full_since": null()},
            "The job is paused, as requested; resume it when there is free space.",
        )
    delay_seconds = pause_seconds(waited_seconds)
    text = f"The job waits for disk space. It is retried in {duration_text(delay_seconds)} from its last snapshot"
    if state == JobState.QUEUED:
        text += f"; after {duration_text(limit_seconds)} without success it is paused"
    return state, {"phase": WAITING_FOR_STORAGE, **waiting}, f"{text}."


def _next_state(job: Job, reason: Reason) -> JobState:
    """The job's state after an attempt that ended for `reason`; an interrupted validation is repeated."""
    state = reason.final_state
    if state == JobState.QUEUED and job.state == JobState.VALIDATING:
        return JobState.VALIDATING
    if state == JobState.QUEUED and job.desired == Desired.PAUSE:
        return JobState.PAUSED
    if state == JobState.PAUSED and job.desired == Desired.RUN:
        return JobState.QUEUED  # the user resumed the job while the trainer was stopping
    return state


def _started_columns(kind: Kind) -> dict[str, Any]:
    if kind == "validate":
        return {"phase": "validating"}
    return {
        "state": JobState.RUNNING,
        "phase": "loading",
        "train_attempts": Job.train_attempts + 1,
        "started_at": func.coalesce(Job.started_at, func.clock_timestamp()),
    }


def _held_gpus(offer: WorkerCapacity, job: Job) -> dict[str, Any]:
    """The columns of an attempt that say what it has of the GPUs."""
    columns: dict[str, Any] = {"gpus": offer.gpus, "gpu_share": offer.gpu_share(job.needed_cuda_bytes)}
    if offer.shares_gpus:
        columns |= {"gpu_uuids": [*offer.gpu_uuids], "budget_bytes": offer.budget_bytes(job.needed_cuda_bytes)}
    return columns


def _started_message(kind: Kind, job: Job) -> str:
    files = job.training_file_id
    if job.validation_file_id:
        files += f" and validation file: {job.validation_file_id}"
    return STARTED_MESSAGE[kind].format(files=files)
