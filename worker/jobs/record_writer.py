"""A trainer's records -> rows: events, progress, checkpoints, snapshots; one transaction a record, in order."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db import models
from app.db.jobs import measurements
from app.db.tables import Job
from app.domain.jobs.events import (
    AnyRecord,
    CheckpointSaved,
    Measured,
    Message,
    Metric,
    Planned,
    Probed,
    SnapshotSaved,
    Started,
)
from app.log import get_logger
from app.system.artifact_directory import ManifestMismatch
from worker.jobs import snapshots
from worker.jobs.lease import DATABASE_AWAY, LeaseKeeper
from worker.jobs.publish import Publisher
from worker.jobs.sanitize import clean, clean_text
from worker.node import space
from worker.node.device import training_device
from worker.node.resources import Resources

# What an event's data names as OpenAI does, and where it stands in our record; the optional ones only when measured.
METRIC_KEYS = ("step", "total_steps", "train_loss", "train_mean_token_accuracy")
OPTIONAL_METRIC_KEYS = (
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "train_reward_accuracy",
    "train_reward_margin",
    "valid_reward_accuracy",
    "valid_reward_margin",
    "full_valid_reward_accuracy",
    "full_valid_reward_margin",
    "peak_memory_bytes",
)
OUR_METRIC_KEYS = ("learning_rate", "grad_norm", "epoch", "labelled_tokens", "tokens_per_second", "eta_seconds")
PROGRESS_KEYS = ("step", "total_steps", "epoch", "tokens_per_second", "eta_seconds")

log = get_logger(__name__)


class Relay:
    """Writes down what a trainer says. Its last words (Done, Stopped, Failed) are the supervisor's to act on."""

    def __init__(self, resources: Resources, job: Job, keeper: LeaseKeeper, directory: Path) -> None:
        self.final_checkpoint: CheckpointSaved | None = None  # published with the success, when it has been verified
        self.last_snapshot: SnapshotSaved | None = None  # the newest, while it is not stored
        self.publisher = Publisher(resources, job, keeper, directory)
        self._resources = resources
        self._job = job
        self._keeper = keeper
        self._directory = directory
        self._planned: Planned | None = None

    def write(self, record: AnyRecord) -> None:
        """Raises FencedError. Whatever else is wrong with one record is told, and costs that record only."""
        try:
            self._write(record)
        except DATABASE_AWAY:
            raise
        except DBAPIError as error:  # a value PostgreSQL refuses
            log.warning("record refused", job=self._job.id, kind=record.kind, error=str(error.orig))
        except ValueError as error:  # ManifestMismatch, and a name that is no storage key
            self._keeper.say(f"Not stored: {clean_text(str(error))}", level="warn", data={"kind": record.kind})
        except OSError as error:
            text = f"The {record.kind} was not stored: {error.strerror or 'the storage is away'}"
            self._keeper.say(f"{text}; the training goes on", level="warn", data={"kind": record.kind})

    def _write(self, record: AnyRecord) -> None:
        match record:
            case Metric():
                self._keeper.say(
                    metric_message(record), type="metrics", data=metric_data(record), progress=progress(record)
                )
            case Started():
                data = clean(record.model_dump(exclude={"kind", "run_id"}))
                step = {"step": record.start_step, "total_steps": record.total_steps}
                self._keeper.say(started_message(record), data=data, phase="training", progress=step)
            case Planned():
                self._planned = record
                self._keeper.say(planned_message(record), data=clean(record.model_dump(exclude={"kind", "run_id"})))
            case Probed():
                self._probed(record)
            case Measured():
                self._measured(record)
            case Message():
                self._keeper.say(clean_text(record.message), level=record.level, data=clean(record.data))
            case CheckpointSaved(final=True):
                self.final_checkpoint = record
            case SnapshotSaved():
                self.last_snapshot = record
                if not record.final:  # that is kept when the trainer has ended, if the next attempt will need it
                    self._store(record)
                    self.last_snapshot = None
            case CheckpointSaved():
                self._store(record)
            case _:
                pass

    def _store(self, record: CheckpointSaved | SnapshotSaved) -> None:
        """A trainer keeps its last few as we do: one that is gone before it was copied would be retired by now."""
        try:
            if isinstance(record, CheckpointSaved):
                self.publisher.checkpoint(record)
            else:
                snapshots.save(self._resources, self._job, self._keeper, self._directory, record)
        except ManifestMismatch:
            if (self._directory / record.directory).exists():
                raise
            self._keeper.say(f"The {record.kind} at step {record.step} was superseded before it was stored")

    def _probed(self, record: Probed) -> None:
        """The plan held against one forward and backward; kept, so that the next plan of the kind knows better."""
        planned = self._planned
        if planned is None:
            return
        device = training_device(self._resources.settings.device)

        def keep(session: Session) -> None:
            base = models.get_base(session, self._job.project_id, self._job.base_model)
            if base is not None:
                sha256 = base.manifest_sha256
                measurements.add(session, self._job, device.kind, device.name, sha256, planned, record)

        self._keeper.transact(keep)
        text = f"Tried the largest row, {record.row_tokens:,} tokens: {gigabytes(record.peak_bytes)}"
        said = {"predicted_peak_bytes": planned.peak_bytes, **record.model_dump(exclude={"kind", "run_id"})}
        self._keeper.say(f"{text}, where {gigabytes(planned.peak_bytes)} were predicted", data=clean(said))

    def _measured(self, record: Measured) -> None:
        self._keeper.transact(lambda session: measurements.finish(session, self._job, record))
        text = f"The training took {_duration(record.seconds)} and {gigabytes(record.peak_bytes)}"
        said = record.model_dump(exclude={"kind", "run_id"})
        if planned := self._planned:  # an attempt that went on from a snapshot did but a part of it
            text += f"; predicted were {_duration(planned.seconds)} and {gigabytes(planned.peak_bytes)}"
            said |= {"predicted_seconds": planned.seconds, "predicted_peak_bytes": planned.peak_bytes}
        self._keeper.say(text, data=clean(said))

    def keep_last_snapshot(self) -> None:
        """After a trainer that ended without a published result: store its newest snapshot if it is not stored yet.

        On a full disk it goes to the space that was reserved for it. Raises FencedError.
        """
        record = self.last_snapshot
        if record is None:
            return
        shutil.rmtree(self._directory / "outbox", ignore_errors=True)
        space.release(self._resources, self._job, self._directory)
        try:
            snapshots.move(self._resources, self._job, self._keeper, self._directory, record)
        except (OSError, ManifestMismatch) as error:
            log.exception("the last snapshot could not be stored", job=self._job.id)
            why = error.strerror if isinstance(error, OSError) else clean_text(str(error))
            self._keeper.say(f"The snapshot of step {record.step} could not be stored: {why}", level="warn")

    def publish_final_as_any(self) -> None:
        """After a pause at the very last step: the adapter is a checkpoint like the others."""
        if self.final_checkpoint is not None:
            self.write(self.final_checkpoint.model_copy(update={"final": False}))


def planned_message(planned: Planned) -> str:
    basis = "" if planned.basis == "measured" else "; a first guess, as no such job has run here yet"
    return (
        f"Planned: {planned.mode}; {gigabytes(planned.peak_bytes)} of {gigabytes(planned.memory_bytes)} at the most, "
        f"about {_duration(planned.seconds)}{basis}"
    )


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def metric_message(metric: Metric) -> str:
    parts = [f"training loss={_loss(metric.train_loss)}"]
    if metric.valid_loss is not None:
        parts.append(f"validation loss={_loss(metric.valid_loss)}")
    if metric.full_valid_loss is not None:
        parts.append(f"full validation loss={_loss(metric.full_valid_loss)}")
    return f"Step {metric.step}/{metric.total_steps}: {', '.join(parts)}"


def metric_data(metric: Metric) -> dict[str, Any]:
    values = clean(metric.model_dump())
    data = {key: values[key] for key in (*METRIC_KEYS, *OUR_METRIC_KEYS)}
    data |= {key: values[key] for key in OPTIONAL_METRIC_KEYS if values[key] is not None}
    return data | {"num_tokens": metric.trained_tokens}


def progress(metric: Metric) -> dict[str, Any]:
    """`estimated_finish` is fixed here: reckoned at each poll, it would slide away during a long step."""
    values = clean(metric.model_dump())
    finish = int(time.time() + values["eta_seconds"]) if values["eta_seconds"] is not None else None
    return {key: values[key] for key in PROGRESS_KEYS} | {"estimated_finish": finish}


def started_message(started: Started) -> str:
    begin = f"Training on {started.device} in {started.compute_dtype}: {started.total_steps} steps"
    if started.start_step:
        begin += f", going on after step {started.start_step}"
    return (
        f"{clean_text(begin)}; {started.examples:,} examples with {started.tokens_per_epoch:,} tokens an epoch, "
        f"{started.labelled_tokens_per_epoch:,} of them learned; {started.trainable_parameters:,} trainable parameters"
    )


def _loss(value: float | None) -> str:
    return f"{value:.2f}" if value is not None and math.isfinite(value) else "not finite"
