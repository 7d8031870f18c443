"""Measured memory and time of jobs beside the predictions of their plans. Never commits."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db.tables import Attempt, Job, MeasurementRow
from app.domain.jobs.events import Measured, Planned, Probed
from app.domain.jobs.spec import JobSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import Measurement
from app.domain.planning.memory import DeviceKind

MAX_SIMILAR = 20  # their medians adapt quickly to a changed driver or library


def add(
    session: Session,
    job: Job,
    device_kind: DeviceKind,
    device_name: str,
    base_manifest_sha256: str,
    planned: Planned,
    probed: Probed,
) -> None:
    """Insert the measurements of the probe, once per attempt; they are used after the job has finished."""
    spec = JobSpec.model_validate(job.spec)
    if session.get(MeasurementRow, (job.id, job.attempt)) is not None:
        return
    session.add(
        MeasurementRow(
            job_id=job.id,
            attempt=job.attempt,
            project_id=job.project_id,
            device_kind=device_kind,
            device_name=device_name,
            base_manifest_sha256=base_manifest_sha256,
            quantization=quantization_key(spec.quantization),
            method=spec.method,
            recompute=planned.mode.recompute,
            cache_weights=planned.mode.cache_weights,
            formula_loaded_bytes=planned.loaded_bytes,
            formula_working_bytes=planned.working_bytes,
            predicted_peak_bytes=planned.peak_bytes,
            predicted_seconds=planned.seconds,
            step_flop=planned.step_flop,
            probe_seconds=probed.seconds,
            loaded_bytes=probed.loaded_bytes,
            peak_bytes=probed.peak_bytes,
        )
    )


def finish(session: Session, job: Job, measured: Measured) -> None:
    """Add the measurements of the complete run, unless the out-of-memory recovery changed the planned mode."""
    session.execute(
        update(MeasurementRow)
        .where(
            MeasurementRow.job_id == job.id,
            MeasurementRow.attempt == job.attempt,
            MeasurementRow.recompute == measured.mode.recompute,
            MeasurementRow.cache_weights == measured.mode.cache_weights,
        )
        .values(
            peak_bytes=func.greatest(MeasurementRow.peak_bytes, measured.peak_bytes),
            seconds=measured.seconds,
            step_seconds=measured.step_seconds,
            step_tokens=measured.step_tokens,
            validation_seconds=measured.validation_seconds,
        )
    )


def similar(
    session: Session,
    device_name: str,
    gpus: int,
    base_manifest_sha256: str,
    quantization: QuantizationSpec | None,
    method: str,
) -> list[Measurement]:
    """Measurements of the newest jobs with this device and number of GPUs, base, quantization and method, in any mode;
    newest first.

    Only finished jobs count: on a CPU, the steps of a complete run take up to a quarter longer than the probe's.
    """
    rows = session.scalars(
        select(MeasurementRow)
        .join(Attempt, (Attempt.job_id == MeasurementRow.job_id) & (Attempt.attempt == MeasurementRow.attempt))
        .where(
            Attempt.gpus == gpus,
            MeasurementRow.device_name == device_name,
            MeasurementRow.base_manifest_sha256 == base_manifest_sha256,
            MeasurementRow.quantization == quantization_key(quantization),
            MeasurementRow.method == method,
            MeasurementRow.seconds.is_not(None),
        )
        .order_by(MeasurementRow.created_at.desc())
        .limit(MAX_SIMILAR)
    )
    return [_measurement(row) for row in rows]


def of_job(session: Session, job_id: str) -> Sequence[MeasurementRow]:
    return session.scalars(
        select(MeasurementRow).where(MeasurementRow.job_id == job_id).order_by(MeasurementRow.attempt)
    ).all()


def count_memory_kills(session: Session, job_id: str) -> int:
    """The number of a job's attempts that the kernel killed for memory."""
    kills = select(func.count()).where(Attempt.job_id == job_id, Attempt.reason == Reason.KILLED_FOR_MEMORY)
    return session.scalar(kills) or 0


def quantization_key(quantization: QuantizationSpec | None) -> str:
    return json.dumps(quantization.model_dump() if quantization else None, sort_keys=True)


def _measurement(row: MeasurementRow) -> Measurement:
    return Measurement.model_validate(
        {
            "recompute": row.recompute,
            "cache_weights": row.cache_weights,
            "loaded_ratio": row.loaded_bytes / row.formula_loaded_bytes,
            "working_ratio": max(1, row.peak_bytes - row.loaded_bytes) / max(1, row.formula_working_bytes),
            "working_bytes": row.formula_working_bytes,
            "tokens": row.step_tokens,
            "flops": _flops(row),
            "other_seconds": _other_seconds(row),
        }
    )


def _flops(row: MeasurementRow) -> float | None:
    if not (row.step_seconds and row.step_tokens and row.step_flop):
        return None
    return row.step_tokens * row.step_flop / row.step_seconds


def _other_seconds(row: MeasurementRow) -> float | None:
    if row.seconds is None or row.step_seconds is None or row.validation_seconds is None:
        return None
    return max(0.0, row.seconds - row.step_seconds - row.validation_seconds - (row.probe_seconds or 0.0))
