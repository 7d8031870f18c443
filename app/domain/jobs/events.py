"""What a trainer says (one JSON line a record, on its standard output) and what it is told (on its standard input).

A closed union: an unknown kind is an error on either side. Units stand in the names; losses are nats per token.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import PlannedLayout


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    run_id: str


class Started(Record):
    """The base is loaded, the adapter is on it, the plan is made: the first step comes next."""

    kind: Literal["started"] = "started"
    device: str
    compute_dtype: str
    threads: int
    trainable_parameters: int
    frozen_parameters: int
    base_bytes: int  # what the frozen base occupies
    examples: int
    tokens_per_epoch: int  # real tokens, no padding
    labelled_tokens_per_epoch: int
    total_steps: int
    start_step: int  # 0, or the step of the snapshot this attempt goes on from
    versions: dict[str, str]


class Planned(Record):
    """How the steps will be laid out, and what that should take: once, at the first attempt."""

    kind: Literal["planned"] = "planned"
    device_kind: Literal["cpu", "cuda"]
    device: str
    memory_bytes: int  # what there is for this process
    mode: PlannedLayout
    largest_row_tokens: int
    components: dict[str, int]  # bytes, by component of app.domain.planning.memory.Memory
    loaded_bytes: int  # predicted by the formula alone, from the first step to the last
    working_bytes: int  # and what a step adds to it
    peak_bytes: int  # predicted by the formula, what was loaded, and earlier measurements
    step_flop: float  # of a token, by the formula (app.domain.planning.duration)
    seconds: float
    basis: Literal["formula", "measured"]


class Probed(Record):
    """One forward and backward of the largest row, before the first step; nothing was changed by it."""

    kind: Literal["probed"] = "probed"
    row_tokens: int
    seconds: float
    loaded_bytes: int  # measured, with what the optimizer will add to it
    peak_bytes: int


class Measured(Record):
    """What the whole run took, against its plan."""

    kind: Literal["measured"] = "measured"
    mode: PlannedLayout
    peak_bytes: int
    seconds: float  # from the start of the process, of a spare one from its work directory on
    step_seconds: float  # of this attempt's steps alone
    step_tokens: int  # real tokens that went through them
    validation_seconds: float  # of its validations


class Metric(Record):
    """One per optimizer step."""

    kind: Literal["metric"] = "metric"
    step: int
    total_steps: int
    epoch: float
    train_loss: float | None  # None stands for a value that is not finite
    train_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None  # of DPO: the share of pairs whose preferred answer gained more
    train_reward_margin: float | None = None  # of DPO: beta times what it gained over the other, in nats
    learning_rate: float
    grad_norm: float | None
    trained_tokens: int  # real tokens that went through the model so far
    labelled_tokens: int  # in this step
    tokens_per_second: float
    eta_seconds: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None
    full_valid_reward_accuracy: float | None = None
    full_valid_reward_margin: float | None = None
    peak_memory_bytes: int | None = None


class Message(Record):
    kind: Literal["message"] = "message"
    level: Literal["info", "warn", "error"] = "info"
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class CheckpointSaved(Record):
    """An adapter directory, complete with MANIFEST.json, renamed into place: public, one per epoch or pause."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    epoch: float
    directory: str  # relative to the work directory
    final: bool
    metrics: dict[str, float | None]


class SnapshotSaved(Record):
    """What resume needs, complete with MANIFEST.json, renamed into place: private."""

    kind: Literal["snapshot"] = "snapshot"
    step: int
    directory: str  # relative to the work directory
    manifest_sha256: str
    final: bool = False  # the last of this attempt: the trainer removes it no more


class Done(Record):
    """The final checkpoint was loaded by PEFT onto the same base and is equal to what was trained."""

    kind: Literal["done"] = "done"
    step: int  # whose adapter it is: the last one, or the best one where that is promoted
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
    """The one line that a spare trainer waits for: from here on it is the trainer of this work directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    work_directory: Path


def parse_record(line: str | bytes) -> AnyRecord:
    """Raises pydantic.ValidationError: what a child prints is untrusted input."""
    return RECORD.validate_json(line)
