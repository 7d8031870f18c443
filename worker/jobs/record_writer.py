"""Write a trainer's records to the database: events, progress, checkpoints, snapshots; one transaction per record."""

from __future__ import annotations

import math
import shutil
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.base_models import models
from app.db.engine import DATABASE_UNAVAILABLE
from app.db.jobs import claims
from app.db.scheduling import measurements
from app.domain.jobs.events import (
    AnyRecord,
    CheckpointSaved,
    Measured,
    Message,
    Metric,
    Planned,
    Probed,
    ServedReferenceMeasured,
    SnapshotSaved,
    Started,
)
from app.domain.units import duration_text
from app.log import get_logger
from app.system.artifact_directory import ManifestMismatch
from app.telemetry import metrics
from worker.jobs import stored_files
from worker.jobs.lease import JobAttempt
from worker.jobs.publish import Publisher
from worker.jobs.sanitize import clean, clean_text
from worker.node import disk_space
from worker.node.device import training_device
from worker.tracking.feeds import MetricFeeds

PROGRESS_KEYS = ("step", "total_steps", "epoch", "tokens_per_second", "eta_seconds")

log = get_logger(__name__)


class JobRecordWriter:
    """Writes the records of one trainer. The supervisor handles the final ones (Done, Stopped, Failed)."""

    def __init__(self, attempt: JobAttempt, feeds: MetricFeeds) -> None:
        self.final_checkpoint: CheckpointSaved | None = None  # published with the result
        self.last_snapshot: SnapshotSaved | None = None  # the newest one, until it is stored
        self.publisher = Publisher(attempt)
        self._attempt = attempt
        self._feeds = feeds
        self._job = attempt.row
        self._planned: Planned | None = None
        self._counted_tokens: int | None = None

    def write(self, record: AnyRecord) -> None:
        """Write one record. Raises FencedError; any other error is reported in an event and skips that record only."""
        try:
            self._write(record)
            self.write_feed_problems()
        except DATABASE_UNAVAILABLE:
            raise
        except DBAPIError as error:  # a value PostgreSQL refuses
            log.warning("record refused", job=self._job.id, kind=record.kind, error=str(error.orig))
        except ValueError as error:  # ManifestMismatch, or a name that is no valid storage key
            self._attempt.append_event(
                f"The {record.kind} was not stored: {clean_text(str(error))}", level="warn", data={"kind": record.kind}
            )
        except OSError as error:
            text = f"The {record.kind} was not stored: {error.strerror or 'the storage is unavailable'}"
            self._attempt.append_event(f"{text}; the training continues", level="warn", data={"kind": record.kind})

    def write_feed_problems(self) -> None:
        """Write an event for each integration that gets no metrics (any more)."""
        for kind, problem in self._feeds.take_problems():
            text = f"The metrics are not sent to {kind}: {problem}; the training continues"
            self._attempt.append_event(text, level="warn", data={"integration": kind})

    def _write(self, record: AnyRecord) -> None:
        match record:
            case Metric():
                values, data = clean(record.model_dump()), metric_data(record)
                progress = {key: values[key] for key in PROGRESS_KEYS}
                self._attempt.append_event(
                    metric_message(record),
                    type="metrics",
                    data=data,
                    progress=claims.progress_with_finish(progress, values["eta_seconds"]),
                )
                self._count_step(record)
                self._feeds.send(record.step, data)
            case Started():
                data = clean(record.model_dump(exclude={"kind", "run_id"}))
                step = {"step": record.start_step, "total_steps": record.total_steps}
                self._attempt.append_event(started_message(record), data=data, phase="training", progress=step)
            case Planned():
                self._write_plan(record)
            case Probed():
                self._write_probe(record)
            case Measured():
                self._write_measurement(record)
            case Message():
                self._attempt.append_event(clean_text(record.message), level=record.level, data=clean(record.data))
            case ServedReferenceMeasured():
                self.publisher.reference = record.reference
            case CheckpointSaved(final=True):
                self.final_checkpoint = record
            case SnapshotSaved():
                self.last_snapshot = record
                if not record.final:  # the final one is stored after the trainer's exit, if a later attempt needs it
                    self._store_directory(record)
                    self.last_snapshot = None
            case CheckpointSaved():
                self._store_directory(record)
            case _:
                pass

    def _write_plan(self, record: Planned) -> None:
        """Report the plan, and store what the trainer counted because the model's registration did not."""
        self._planned, job, counted = record, self._job, record.activation_bytes
        if counted:
            self._attempt.transact(
                lambda session: models.add_activation_bytes(session, job.project_id, job.base_model, counted)
            )
        data = record.model_dump(exclude={"kind", "run_id", *(() if counted else ("activation_bytes",))})
        self._attempt.append_event(planned_message(record), data=clean(data))

    def _count_step(self, record: Metric) -> None:
        """Update the metrics. `trained_tokens` counts from the start of the job, so the first record of an attempt
        that resumed has no difference."""
        if self._counted_tokens is not None or record.step == 1:
            metrics.TRAINED_TOKENS.inc(max(0, record.trained_tokens - (self._counted_tokens or 0)))
        self._counted_tokens = record.trained_tokens
        metrics.TRAINED_STEPS.inc()
        metrics.TOKENS_PER_SECOND.set(record.tokens_per_second)

    def _store_directory(self, record: CheckpointSaved | SnapshotSaved) -> None:
        """Store a checkpoint or snapshot. The trainer keeps only its newest ones, as this worker does: one that the
        trainer has deleted before it was copied would be retired by now, so it is skipped."""
        try:
            with metrics.STORE_SECONDS.labels(record.kind).time():
                if isinstance(record, CheckpointSaved):
                    self.publisher.publish_checkpoint(record)
                else:
                    stored_files.save_snapshot(self._attempt, record)
        except ManifestMismatch:
            if (self._attempt.directory / record.directory).exists():
                raise
            self._attempt.append_event(f"The {record.kind} at step {record.step} was superseded before it was stored")

    def _write_probe(self, record: Probed) -> None:
        """Store the measured peak memory of one forward and backward pass, from which later plans are corrected."""
        planned = self._planned
        if planned is None:
            return
        device = training_device(self._attempt.resources.settings.device)

        def add(session: Session) -> None:
            base = models.get_base(session, self._job.project_id, self._job.base_model)
            if base is not None:
                sha256 = base.manifest_sha256
                measurements.add(session, self._job, device.kind, device.name, sha256, planned, record)

        self._attempt.transact(add)
        text = (
            f"Memory check: the largest packed batch ({record.row_tokens:,} tokens) used "
            f"{gigabytes(record.peak_bytes)} (estimated {gigabytes(planned.peak_bytes)})"
        )
        data = {"predicted_peak_bytes": planned.peak_bytes, **record.model_dump(exclude={"kind", "run_id"})}
        self._attempt.append_event(text, data=clean(data))

    def _write_measurement(self, record: Measured) -> None:
        """Store duration and peak memory of the training, from which later plans are corrected."""
        self._attempt.transact(lambda session: measurements.finish(session, self._job, record))
        attempts = self._job.train_attempts
        last = f" (the last of {attempts} attempts)" if attempts > 1 else ""
        text = f"Training finished in {duration_text(record.seconds)}{last}, peak memory {gigabytes(record.peak_bytes)}"
        data = record.model_dump(exclude={"kind", "run_id"})
        if planned := self._planned:  # an attempt that resumed from a snapshot trained only a part of the plan
            metrics.PLAN_RATIO.labels("time").observe(record.seconds / max(planned.seconds, 1e-3))
            metrics.PLAN_RATIO.labels("memory").observe(record.peak_bytes / max(planned.peak_bytes, 1))
            text += f" (estimated {duration_text(planned.seconds)}, {gigabytes(planned.peak_bytes)})"
            data |= {"predicted_seconds": planned.seconds, "predicted_peak_bytes": planned.peak_bytes}
        self._attempt.append_event(text, data=clean(data))

    def store_last_snapshot(self) -> None:
        """Store the newest snapshot of a trainer that ended without a published result, unless it is stored already.

        On a full disk it uses the reserved space. Raises FencedError.
        """
        record = self.last_snapshot
        if record is None:
            return
        shutil.rmtree(self._attempt.directory / "outbox", ignore_errors=True)
        disk_space.release(self._attempt)
        try:
            stored_files.save_snapshot(self._attempt, record, is_trainer_running=False)
        except (OSError, ManifestMismatch) as error:
            log.exception("the last snapshot could not be stored", job=self._job.id)
            cause = error.strerror if isinstance(error, OSError) else clean_text(str(error))
            self._attempt.append_event(f"The snapshot of step {record.step} was not stored: {cause}", level="warn")

    def publish_final_as_intermediate(self) -> None:
        """Publish the final adapter as an intermediate checkpoint, after a pause at the last step."""
        if self.final_checkpoint is not None:
            self.write(self.final_checkpoint.model_copy(update={"final": False}))


def planned_message(planned: Planned) -> str:
    basis = "" if planned.basis == "measured" else ". First job of this kind here, so the estimate is rough"
    counted = ""
    if kept_bytes := planned.activation_bytes.get("nothing"):
        counted = f". Counted now, for later plans too: a layer keeps {kept_bytes / 1e3:.1f} kB per token"
    return (
        f"Estimated peak memory {gigabytes(planned.peak_bytes)} of {gigabytes(planned.memory_bytes)}, "
        f"training time about {duration_text(planned.seconds)}; execution plan: {planned.mode}{basis}{counted}"
    )


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def metric_message(metric: Metric) -> str:
    parts = [f"training loss={_loss(metric.train_loss)}"]
    if metric.valid_loss is not None:
        parts.append(f"validation loss={_loss(metric.valid_loss)}")
    if metric.full_valid_loss is not None:
        parts.append(f"full validation loss={_loss(metric.full_valid_loss)}")
    return f"Step {metric.step}/{metric.total_steps}: {', '.join(parts)}"


def metric_data(metric: Metric) -> dict[str, Any]:
    """The data of a metrics event: under the names of OpenAI's API, and optional metrics only if they were measured."""
    values = clean(metric.model_dump(exclude={"kind", "run_id", "trained_tokens"}))
    required = {name for name, field in Metric.model_fields.items() if field.is_required()}
    always = required | {"train_mean_token_accuracy"}
    data = {name: value for name, value in values.items() if value is not None or name in always}
    return data | {"num_tokens": metric.trained_tokens}


def started_message(started: Started) -> str:
    begin = f"Training on {started.device} in {started.compute_dtype}: {started.total_steps} steps"
    if started.start_step:
        begin += f", resumed after step {started.start_step}"
    return (
        f"{clean_text(begin)}; {started.examples:,} examples with {started.tokens_per_epoch:,} tokens per epoch, "
        f"{started.labelled_tokens_per_epoch:,} of them trained on; "
        f"{started.trainable_parameters:,} trainable parameters"
    )


def _loss(value: float | None) -> str:
    return f"{value:.2f}" if value is not None and math.isfinite(value) else "not finite"
