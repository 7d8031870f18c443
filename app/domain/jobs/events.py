"""The records of a trainer (JSON lines on its standard output) and its commands (JSON lines on its standard input).

A closed union: an unknown kind is an error on both sides. Names contain units; losses are nats per token.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from app.domain.deliveries.served_check import ServedReference
from app.domain.jobs.states import Reason
from app.domain.methods import METHODS
from app.domain.planning.execution_plan import PlannedLayout, Recompute


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    run_id: str


class Started(Record):
    """Base and adapter are loaded and the plan is made; the first step follows."""

    kind: Literal["started"] = "started"
    device: str
    compute_dtype: str
    threads: int
    trainable_parameters: int
    frozen_parameters: int
    base_bytes: int  # memory of the frozen base
    examples: int
    tokens_per_epoch: int  # without padding
    labelled_tokens_per_epoch: int
    total_steps: int
    start_step: int  # 0, or the step of the snapshot from which this attempt resumes
    versions: dict[str, str]
    # Of each comparison of the base model's check: the largest difference found, and the allowed one.
    margins: dict[str, tuple[float, float]] = {}


class Planned(Record):
    """The execution plan, and its estimated memory and time; once, in the first attempt."""

    kind: Literal["planned"] = "planned"
    device_kind: Literal["cpu", "cuda"]
    device: str
    memory_bytes: int  # available to this process
    mode: PlannedLayout
    largest_row_tokens: int
    components: dict[str, int]  # bytes, by component of app.domain.planning.memory.MemoryEstimate
    loaded_bytes: int  # predicted by the formula alone; stays allocated
    working_bytes: int  # predicted by the formula alone; allocated by each step
    peak_bytes: int  # predicted, corrected by the loaded bytes and by earlier measurements
    step_flop: float  # per token, by the formula (app.domain.planning.duration)
    seconds: float
    basis: Literal["formula", "measured"]
    activation_bytes: dict[Recompute, float] = {}  # counted, because the catalog entry of the base model has none


class Probed(Record):
    """One forward and backward of the largest packed batch before the first step; it changes nothing."""

    kind: Literal["probed"] = "probed"
    row_tokens: int
    seconds: float
    loaded_bytes: int  # measured, plus the state of the optimizer
    peak_bytes: int


class Measured(Record):
    """The measured memory and time of the run, to compare with its plan."""

    kind: Literal["measured"] = "measured"
    mode: PlannedLayout
    peak_bytes: int
    seconds: float  # from the start of the process; of a warm trainer from its Begin
    step_seconds: float  # only the steps of this attempt
    step_tokens: int  # processed in them
    validation_seconds: float  # only the validations


METHOD_METRICS = frozenset(
    f"{scope}_{name}"
    for method in METHODS.values()
    for name in method.metrics
    for scope in ("train", "valid", "full_valid")
)


class Metric(Record):
    """One per optimizer step. METHOD_METRICS of the job's method are further fields; None: not measured or finite."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, float | None]

    kind: Literal["metric"] = "metric"
    step: int
    total_steps: int
    epoch: float
    train_loss: float | None  # None: not finite
    train_mean_token_accuracy: float | None = None
    learning_rate: float
    grad_norm: float | None
    trained_tokens: int  # processed so far
    labelled_tokens: int  # in this step
    tokens_per_second: float
    eta_seconds: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    peak_memory_bytes: int | None = None

    @model_validator(mode="after")
    def _has_metrics_of_methods(self) -> Self:
        if unknown := (self.model_extra or {}).keys() - METHOD_METRICS:
            raise ValueError(f"unknown metrics {', '.join(sorted(unknown))}")
        return self


class Message(Record):
    kind: Literal["message"] = "message"
    level: Literal["info", "warn", "error"] = "info"
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class CheckpointSaved(Record):
    """A public adapter directory with MANIFEST.json, renamed into place; one per epoch or pause."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    epoch: float
    directory: str  # relative to the work directory
    final: bool
    metrics: dict[str, float | None]


class SnapshotSaved(Record):
    """A private snapshot directory with MANIFEST.json, renamed into place."""

    kind: Literal["snapshot"] = "snapshot"
    step: int
    directory: str  # relative to the work directory
    manifest_sha256: str
    final: bool = False  # the last of this attempt; the trainer does not remove it


class ServedReferenceMeasured(Record):
    """What an engine that serves the result must compute; before `Done`."""

    kind: Literal["served_reference"] = "served_reference"
    step: int
    reference: ServedReference


class Done(Record):
    """PEFT has loaded the final checkpoint onto the same base, and its outputs equal those of the trained adapter."""

    kind: Literal["done"] = "done"
    step: int  # of the adapter: the last step, or the best one if it is promoted
    trained_tokens: int  # in all
    directory: str  # of the final checkpoint, relative to the work directory


class Stopped(Record):
    kind: Literal["stopped"] = "stopped"
    reason: Literal[Reason.CANCELLED, Reason.PAUSED, Reason.DRAINED]
    step: int


class Failed(Record):
    kind: Literal["failed"] = "failed"
    reason: Reason
    message: str  # for the user: what was seen, what is allowed, what to do
    param: str | None = None


AnyRecord = Annotated[
    Started
    | Planned
    | Probed
    | Measured
    | Metric
    | Message
    | CheckpointSaved
    | SnapshotSaved
    | ServedReferenceMeasured
    | Done
    | Stopped
    | Failed,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[AnyRecord] = TypeAdapter(AnyRecord)


class Command(StrEnum):
    CANCEL = "cancel"  # stop at the next step boundary, save nothing
    PAUSE = "pause"  # checkpoint and snapshot at the next step boundary, then stop
    DRAIN = "drain"  # snapshot at the next step boundary, then stop


class Control(BaseModel):
    """One line on the trainer's standard input. SIGTERM means: drain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: Command
    run_id: str


class Begin(BaseModel):
    """The first line for a warm trainer: the work directory of its job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    work_directory: Path


def parse_record(line: str | bytes) -> AnyRecord:
    """Parse a record. Raises pydantic.ValidationError: the output of a child process is untrusted."""
    return RECORD.validate_json(line)


def resume_message(step: int | None, problems: Sequence[str]) -> tuple[Literal["info", "warn"], str]:
    """(level, text) of the event that names where a run resumes; `step` None is the beginning."""
    text = f"Resuming from the snapshot of step {step}"
    if step is None:
        text = "Starting from step 0: there is no snapshot to resume from"
    if problems:
        return "warn", f"{text}; not usable: " + "; ".join(problems)
    return "info", text


# OpenAI's five columns first, as scripts read them by position; then ours.
RESULT_COLUMNS = (
    "step",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "train_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "epoch",
    "num_tokens",
)
OPENAI_NAMES = {"train_accuracy": "train_mean_token_accuracy"}  # of what has another name in a row


MIN_POINTS_WITH_EXTREMES = 100  # as many as a chart has at least


@dataclass(frozen=True)
class Point:
    """A step of the loss chart; `row` is the index of its row."""

    step: int
    loss: float
    is_validated: bool
    row: int
    is_finite: bool = True
    valid_loss: float | None = None


def results_csv(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line per step; values that were not measured are blank."""
    text, rows = io.StringIO(), list(rows)
    columns = RESULT_COLUMNS + _method_columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row.get(OPENAI_NAMES.get(column, column)) for column in columns)
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue().encode()


def _method_columns(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The columns of the method whose metrics the rows have, beside RESULT_COLUMNS."""
    for method in METHODS.values():
        columns = tuple(f"{scope}_{name}" for scope in ("train", "full_valid") for name in method.metrics)
        if any(column in row for row in rows for column in columns if column not in RESULT_COLUMNS):
            return columns
    return ()


def downsample(points: Sequence[Point], max_points: int, extremes: Sequence[Point] = ()) -> list[Point]:
    """At most `max_points` (at least 2) of the points, including the first and the last; measured points, not means.

    From MIN_POINTS_WITH_EXTREMES on, the points with the lowest and the highest loss, with the best validation, and the
    given `extremes` of other metrics are among them. The others are one of each of equal ranges: the one farthest from
    their mean loss, so that spikes remain. Points with a validation are preferred.
    """
    if len(points) <= max_points:
        return list(points)
    chosen = {points[0], points[-1]}
    if max_points >= MIN_POINTS_WITH_EXTREMES:
        chosen.update(_extremes(points), extremes)
    others = [point for point in points if point not in chosen]
    count = max_points - len(chosen)
    for number in range(count):
        bucket = others[number * len(others) // count : (number + 1) * len(others) // count]
        mean = fmean(point.loss for point in bucket)
        candidates = [point for point in bucket if point.is_validated] or bucket
        chosen.add(max((abs(point.loss - mean), point.step, point) for point in candidates)[2])
    return sorted(chosen, key=lambda point: point.step)


def _extremes(points: Sequence[Point]) -> list[Point]:
    losses = [(point.loss, point.step, point) for point in points if point.is_finite]
    found = [min(losses)[2], max(losses)[2]] if losses else []
    validations = [(point.valid_loss, point.step, point) for point in points if point.valid_loss is not None]
    return [*found, min(validations)[2]] if validations else found
