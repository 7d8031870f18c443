"""Differences between two jobs: data, configuration, environment and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db.files import files
from app.db.jobs import checkpoints, events, jobs, measurements
from app.db.tables import Job
from app.domain.error_text.json_text import unquoted
from app.domain.jobs.json_diff import ValueDiff, diff
from app.domain.jobs.spec import JobSpec
from app.errors import NotFound

DATASET_COUNTS = ("examples", "tokens_per_epoch", "labelled_tokens_per_epoch")
BASE_SHA256 = "base_model_sha256"
ENVIRONMENT_KEYS = ("device", "compute_dtype", "threads", "versions")
RESULT_METRICS = ("train_loss", "train_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")


@dataclass(frozen=True)
class Diff:
    left: Job
    right: Job
    data: list[ValueDiff]
    config: list[ValueDiff]
    environment: list[ValueDiff]
    result: list[ValueDiff]


@dataclass(frozen=True)
class JobFacts:
    """The comparable facts of one job, flat or nested."""

    data: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]


def get_other(session: Session, project_id: str, job_id: str) -> Job:
    job = jobs.get(session, project_id, job_id)
    if job is None:
        raise NotFound(f"with: no such fine-tuning job: {unquoted(job_id)}", "with")
    return job


def compare(session: Session, left: Job, right: Job) -> Diff:
    one, other = facts_of(session, left), facts_of(session, right)
    return Diff(
        left,
        right,
        data=diff(one.data, other.data, known_after_run=DATASET_COUNTS),
        config=diff(one.config, other.config, known_after_run=(BASE_SHA256,)),
        environment=diff(one.environment, other.environment, known_after_run=one.environment),
        result=diff(one.result, other.result),
    )


def facts_of(session: Session, job: Job) -> JobFacts:
    """The facts of a job; its environment is that of the last attempt, which made the result."""
    started = events.last_start_data(session, job.id) or {}
    return JobFacts(
        data=_data(session, job, started),
        config=_config(session, job),
        environment=_environment(session, job, started),
        result=_result(session, job),
    )


def _data(session: Session, job: Job, started: dict[str, Any]) -> dict[str, Any]:
    return {
        "training_file": _file(session, job.training_file_id),
        "validation_file": _file(session, job.validation_file_id),
        **{key: started.get(key) for key in DATASET_COUNTS},
    }


def _file(session: Session, file_id: str | None) -> dict[str, Any] | None:
    """A file by its content, as the same content may be uploaded twice; also a deleted file."""
    file = files.get_even_deleted(session, file_id) if file_id else None
    return None if file is None else {"sha256": file.sha256, "bytes": file.bytes, "rows": file.line_count}


def _config(session: Session, job: Job) -> dict[str, Any]:
    hidden = {"version", "model_alias", "file_origins", "dtype_is_free", "layer_patterns", "line_rules"}
    spec = JobSpec.model_validate(job.spec).model_dump(mode="json", exclude=hidden)
    if spec["hyperparameters"]["learning_rate"] is not None:
        spec["hyperparameters"].pop("learning_rate_multiplier")  # the rate follows from it; a clone requests the rate
    return {
        "base_model": spec.pop("base_model"),
        BASE_SHA256: _base_sha256(session, job),
        "method": spec.pop("method"),
        "continued_from": spec.pop("continued_from"),
        "seed": spec.pop("seed"),
        **spec,
    }


def _base_sha256(session: Session, job: Job) -> str | None:
    """The SHA-256 of the base model's manifest, from the manifest of a checkpoint or from a measurement."""
    for checkpoint in checkpoints.kept(session, job.id):
        if sha256 := checkpoint.manifest.get("base_model", {}).get("manifest_sha256"):
            return str(sha256)
    measured = measurements.of_job(session, job.id)
    return measured[-1].base_manifest_sha256 if measured else None


def _environment(session: Session, job: Job, started: dict[str, Any]) -> dict[str, Any]:
    measured = measurements.of_job(session, job.id)
    layout = {"recompute": measured[-1].recompute, "cache_weights": measured[-1].cache_weights} if measured else None
    return {key: started.get(key) for key in ENVIRONMENT_KEYS} | {
        "device_kind": measured[-1].device_kind if measured else None,
        "layout": layout,
        "worker": jobs.last_training_worker(session, job.id),
    }


def _result(session: Session, job: Job) -> dict[str, Any]:
    metrics, measured = _metrics(session, job), measurements.of_job(session, job.id)
    last = measured[-1] if measured else None
    rate = last.step_tokens / last.step_seconds if last and last.step_tokens and last.step_seconds else None
    return {
        "status": job.state,
        "error_code": job.error_code,
        "steps": (job.progress or {}).get("step"),
        "trained_tokens": job.trained_tokens,
        **{key: metrics.get(key) for key in RESULT_METRICS},
        "seconds": _seconds(job),
        "training_seconds": round(job.training_seconds, 1) if job.started_at else None,
        "tokens_per_second": rate,
        "peak_memory_bytes": last.peak_bytes if last else None,
        "train_attempts": job.train_attempts,
        "adapter_bytes": job.adapter_bytes,
        "adapter_sha256": job.adapter_sha256,
    }


def _metrics(session: Session, job: Job) -> dict[str, Any]:
    """The metrics of the result checkpoint, completed by those of the last step."""
    result = checkpoints.by_names(session, [job.fine_tuned_model]) if job.fine_tuned_model else {}
    last = events.last_metrics_data(session, job.id) or {}
    return last | {key: value for each in result.values() for key, value in each.metrics.items() if value is not None}


def _seconds(job: Job) -> float | None:
    """Seconds from the first training claim to the end, including pauses and waits between attempts."""
    if job.started_at is None or job.finished_at is None:
        return None
    return round((job.finished_at - job.started_at).total_seconds(), 1)
