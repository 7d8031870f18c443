"""Differences between two jobs: data, configuration, environment and results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.db import files
from app.db.jobs import checkpoints
from app.db.scheduling import measurements
from app.db.tables import Attempt, Job, JobEvent, MeasurementRow
from app.domain.jobs.spec import JobSpec


@dataclass(frozen=True)
class ValueDiff:
    """The value of both objects at one path; None if it is absent."""

    path: str
    left: Any
    right: Any
    null_is_unknown: bool = False

    @property
    def differs(self) -> bool:
        if self.null_is_unknown and (self.left is None or self.right is None):
            return False
        return type(self.left) is not type(self.right) or bool(self.left != self.right)


@dataclass(frozen=True)
class Differences:
    values: list[ValueDiff]

    @property
    def differences(self) -> int:
        return sum(row.differs for row in self.values)


def diff(left: Mapping[str, Any], right: Mapping[str, Any], known_after_run: Collection[str] = ()) -> Differences:
    """The rows of all paths, in the order of `left`, then of `right`.

    `known_after_run` are keys whose values exist only after a run: null in one object is not a difference there.
    """
    lefts, rights = dict(flatten(left)), dict(flatten(right))
    paths = [*lefts, *(path for path in rights if path not in lefts)]
    rows = [
        ValueDiff(path, lefts.get(path), rights.get(path), path.partition(".")[0] in known_after_run) for path in paths
    ]
    return Differences([row for row in rows if row.left is not None or row.right is not None])


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value); lists are values, because their order matters or they are sorted."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{path}.")
        else:
            yield path, value or None if isinstance(value, Mapping) else value


DATASET_COUNTS = ("examples", "tokens_per_epoch", "labelled_tokens_per_epoch")
BASE_SHA256 = "base_model_sha256"
ENVIRONMENT_KEYS = ("device", "compute_dtype", "threads", "versions")
RESULT_METRICS = ("train_loss", "train_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")


def compare(session: Session, left: Job, right: Job) -> dict[str, Job | Differences]:
    """The differences; the environment of a job is that of the last attempt, which made the result."""
    one, other = _facts(session, left), _facts(session, right)
    known_after_run = {"data": DATASET_COUNTS, "config": (BASE_SHA256,), "environment": one["environment"]}
    sections = {name: diff(one[name], other[name], known_after_run.get(name, ())) for name in one}
    return {"left": left, "right": right, **sections}


def _facts(session: Session, job: Job) -> dict[str, dict[str, Any]]:
    """The comparable facts of a job, flat or nested, by section."""
    started = _last_data(session, job, JobEvent.type == "message", JobEvent.data.has_key("versions"))
    measured = measurements.of_job(session, job.id)
    last = measured[-1] if measured else None
    return {
        "data": {name: _file(session, getattr(job, f"{name}_id")) for name in ("training_file", "validation_file")}
        | {key: started.get(key) for key in DATASET_COUNTS},
        "config": _config(session, job, last),
        "environment": _environment(session, job, started, last),
        "result": _result(session, job, last),
    }


def _file(session: Session, file_id: str | None) -> dict[str, Any] | None:
    """A file by its content, as the same content may be uploaded twice; also a deleted file."""
    file = files.get_even_deleted(session, file_id) if file_id else None
    return None if file is None else {"sha256": file.sha256, "bytes": file.bytes, "rows": file.line_count}


def _config(session: Session, job: Job, measured: MeasurementRow | None) -> dict[str, Any]:
    spec = JobSpec.model_validate(job.spec).model_dump(mode="json", exclude=set(JobSpec.NOTES))
    if spec["hyperparameters"]["learning_rate"] is not None:
        spec["hyperparameters"].pop("learning_rate_multiplier")  # the rate follows from it; a clone requests the rate
    return {
        "base_model": spec.pop("base_model"),
        BASE_SHA256: _base_sha256(session, job, measured),
        "method": spec.pop("method"),
        "continued_from": spec.pop("continued_from"),
        "seed": spec.pop("seed"),
        **spec,
    }


def _base_sha256(session: Session, job: Job, measured: MeasurementRow | None) -> str | None:
    """The SHA-256 of the base model's manifest, from the manifest of a checkpoint or from a measurement."""
    for checkpoint in checkpoints.kept(session, job.id):
        if sha256 := checkpoint.manifest.get("base_model", {}).get("manifest_sha256"):
            return str(sha256)
    return measured.base_manifest_sha256 if measured else None


def _environment(
    session: Session, job: Job, started: dict[str, Any], measured: MeasurementRow | None
) -> dict[str, Any]:
    worker = session.scalar(
        select(Attempt.worker)
        .where(Attempt.job_id == job.id, Attempt.kind == "train")
        .order_by(Attempt.attempt.desc())
        .limit(1)
    )
    return {key: started.get(key) for key in ENVIRONMENT_KEYS} | {
        "device_kind": measured and measured.device_kind,
        "layout": measured and {"recompute": measured.recompute, "cache_weights": measured.cache_weights},
        "worker": worker and worker.partition("#")[0],  # without the suffix that changes with each start
    }


def _result(session: Session, job: Job, last: MeasurementRow | None) -> dict[str, Any]:
    metrics = _last_data(session, job, JobEvent.type == "metrics")  # completed by those of the result
    for checkpoint in checkpoints.by_names(session, [job.fine_tuned_model] if job.fine_tuned_model else []).values():
        metrics = metrics | {key: value for key, value in checkpoint.metrics.items() if value is not None}
    rate = last.step_tokens / last.step_seconds if last and last.step_tokens and last.step_seconds else None
    return {
        "status": job.state,
        "error_code": job.error_code,
        "steps": (job.progress or {}).get("step"),
        "trained_tokens": job.trained_tokens,
        **{key: metrics.get(key) for key in RESULT_METRICS},
        # from the first training claim to the end, with pauses and waits between attempts
        "seconds": round((job.finished_at - job.started_at).total_seconds(), 1)
        if job.started_at and job.finished_at
        else None,
        "training_seconds": round(job.training_seconds, 1) if job.started_at else None,
        "tokens_per_second": rate,
        "peak_memory_bytes": last.peak_bytes if last else None,
        "train_attempts": job.train_attempts,
        "adapter_bytes": job.adapter_bytes,
        "adapter_sha256": job.adapter_sha256,
    }


def _last_data(session: Session, job: Job, *conditions: ColumnElement[bool]) -> dict[str, Any]:
    """The data of the last such event; that of a started trainer has device, versions and counts."""
    query = select(JobEvent.data).where(JobEvent.job_id == job.id, *conditions).order_by(JobEvent.seq.desc()).limit(1)
    return session.scalar(query) or {}
