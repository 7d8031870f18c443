"""The states of a job, their transitions, and the reasons that end an attempt.

    validating_files -> queued -> running -> succeeded | failed | cancelled
    running -> paused -> queued            running -> queued after an attempt without a result

`desired` is the state that the user requested, `state` the actual one. The reason is stored and determines the state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self


class JobState(StrEnum):
    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WorkState(StrEnum):
    """Of exports and evaluations: queued -> running -> succeeded | failed | cancelled; running -> queued after a lost
    attempt. Registrations of base models have all but the last. Clients do not see cancelled exports: these were
    deleted before they were finished."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED_WORK = (WorkState.QUEUED, WorkState.RUNNING)
FINISHED_WORK = (WorkState.SUCCEEDED, WorkState.FAILED, WorkState.CANCELLED)


class Desired(StrEnum):
    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Reason(StrEnum):
    """Why an attempt ended, with the next state of the job.

    A reason that fails the job is its error code, with a remedy and an example of its message; `…` stands for the
    variable parts.
    """

    final_state: JobState
    cause: str
    remedy: str | None
    message: str | None

    def __new__(
        cls, value: str, final_state: JobState, cause: str, remedy: str | None = None, message: str | None = None
    ) -> Self:
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.final_state, reason.cause, reason.remedy, reason.message = final_state, cause, remedy, message
        return reason

    @classmethod
    def of(cls, code: str | None) -> Reason | None:
        """The reason with this code; None for a code of an earlier release."""
        return next((reason for reason in cls if reason.value == code), None)

    DONE = "done", JobState.SUCCEEDED, "the adapter was saved, and verified by loading it with PEFT"
    DRAINED = (
        "drained",
        JobState.QUEUED,
        "its worker was shut down, or had no answer from PostgreSQL for `TUNERY_SELF_FENCE_SECONDS`; a snapshot was "
        "saved",
    )
    PREEMPTED = (
        "gave_way",  # the stored name of a preemption
        JobState.QUEUED,
        "preempted: an urgent job needed its worker; a snapshot was saved",
    )
    PAUSED = "paused", JobState.PAUSED, "on request"
    CANCELLED = "cancelled", JobState.CANCELLED, "on request"
    WORKER_LOST = "worker_lost", JobState.QUEUED, "the lease expired without a renewal"
    TRAINER_CRASHED = "trainer_crashed", JobState.QUEUED, "the trainer ended by a signal or an unexpected error"
    KILLED_FOR_MEMORY = (
        "killed_for_memory",
        JobState.QUEUED,
        "the kernel killed the trainer for lack of memory; the next attempt uses less; the third time the job fails "
        "with `out_of_memory`",
    )
    SLOT_TOO_SMALL = (
        "slot_too_small",
        JobState.QUEUED,
        "the memory of a slot that shares its GPU was too small; the next attempt has a whole GPU",
    )
    DEVICE_LOST = (
        "device_lost",
        JobState.QUEUED,
        "a GPU failed or disappeared while the job ran on it, which is no crash of the job; on two workers it fails "
        "the job with `worker_crash_loop`; a worker with three of these in a row is out of service until "
        "`tunery workers --resume`",
    )
    STALLED = (
        "stalled",
        JobState.QUEUED,
        "the watchdog stopped the trainer: no record for ten minutes, or for the duration of twenty steps",
    )
    WORKER_CRASH_LOOP = (
        "worker_crash_loop",
        JobState.FAILED,
        "Three consecutive attempts crashed without a new snapshot between them, or the GPUs of two workers failed.",
        "Ask the operator: the log of the job has the reason of each crash.",
        "…; gave up after … attempts in a row that ended like this",
    )
    INVALID_N_EXAMPLES = (
        "invalid_n_examples",
        JobState.FAILED,
        "The training file has fewer than ten examples.",
        "Add examples. An operator may lower `TUNERY_MIN_TRAINING_EXAMPLES`.",
        "Training file has 9 example(s), but must have at least 10 examples",
    )
    INVALID_TRAINING_FILE = (
        "invalid_training_file",
        JobState.FAILED,
        "Invalid examples, a file for another method, or no example with a token to learn.",
        "Correct the listed lines (the first ten findings, and the number of the others), and upload the file again.",
        "The job failed due to an invalid training file. Line 3: message 2 has no role; allowed are …",
    )
    INVALID_VALIDATION_FILE = (
        "invalid_validation_file",
        JobState.FAILED,
        "Invalid examples in the validation file, or a file for another method.",
        "Correct the listed lines and upload the file again, or create the job without a validation file.",
        'The job failed due to an invalid validation file. Line 7: the last message is from "user", but it must be '
        'from "assistant", which is trained.',
    )
    INVALID_EVALUATION_FILE = (
        "invalid_evaluation_file",
        JobState.FAILED,
        "Invalid rows in the file of the job's `evaluation`, or rows without a field that a grader needs. Nothing was "
        "trained.",
        "Correct the listed lines or the grader.",
        'The job failed due to an invalid evaluation file. Line 2: for the grader "label" there is no {{ item.label '
        "}}; item has: messages, reference_answer.",
    )
    INVALID_SPEC = (
        "invalid_spec",
        JobState.FAILED,
        "The trainer found a contradiction between parameters and base model: a module that the model lacks, or a "
        "context length beyond its positions.",
        "Change the parameter in `param`.",
        "hyperparameters.context_length is …, but the base model reads at most … tokens; choose up to ….",
    )
    MODEL_UNAVAILABLE = (
        "model_unavailable",
        JobState.FAILED,
        "The base model's directory is missing, changed after its registration, or has parts that cannot be trained.",
        "Ask the operator to register the base model again, or choose another one.",
        "The base model … cannot be used: …. The operator can register it again: `tunery models add`.",
    )
    OUT_OF_MEMORY = (
        "out_of_memory",
        JobState.FAILED,
        "The job does not fit into memory, even with the smallest batch and full activation checkpointing.",
        "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts whether a job fits.",
        "The base model, the adapter (r …) and one document of up to … tokens do not fit into memory. Lower "
        "hyperparameters.context_length first, then lora.r; without quantization, request 4 bits.",
    )
    NON_FINITE_LOSS = (
        "non_finite_loss",
        JobState.FAILED,
        "The loss became NaN or infinite.",
        "Check the listed lines, or lower the learning rate.",
        "Step … has the loss … and the gradient norm …. It trained on the lines … of the training file. Check those "
        "lines, or lower hyperparameters.learning_rate.",
    )
    STORAGE_FULL = (
        "storage_full",
        JobState.QUEUED,
        "a disk is full; the job waits with the phase `waiting_for_storage` and is retried from its last snapshot; "
        "after `TUNERY_STORAGE_FULL_WAIT_SECONDS` it is paused: delete files, or ask the operator for space. In "
        "earlier versions such a job failed with this code; create it again",
        "Delete files, or ask the operator for space; then create the job again.",
    )
    STORAGE_UNAVAILABLE = (
        "storage_unavailable",
        JobState.QUEUED,
        "storage is unreachable; retried until it is available",
    )
    ADAPTER_MISMATCH = (
        "adapter_mismatch",
        JobState.FAILED,
        "The saved adapter differs from the trained one after loading: a defect. Nothing was published.",
        "Report it to the operator, with the id of the job.",
        "The saved adapter, loaded with PEFT, is not what was trained: …. It was not published.",
    )
    SERVER_ERROR = (
        "server_error",
        JobState.FAILED,
        "A defect of the server, such as missing content of a file.",
        "Ask the operator, with the id of the job.",
        "The content of … is missing in storage",
    )


# Crashed attempts count towards the crash streak of the job; drained and paused ones do not, nor does a lost GPU, which
# counts for its worker (app.db.scheduling.device_losses).
CRASHES = frozenset(
    {
        Reason.WORKER_LOST,
        Reason.TRAINER_CRASHED,
        Reason.KILLED_FOR_MEMORY,
        Reason.STALLED,
    }
)
# Failures that the user of the job cannot prevent.
OPERATOR_REASONS = frozenset(
    {Reason.MODEL_UNAVAILABLE, Reason.WORKER_CRASH_LOOP, Reason.ADAPTER_MISMATCH, Reason.SERVER_ERROR}
)


class ExitCode:
    """The trainer's exit codes (from sysexits.h where one fits)."""

    DONE = 0
    BAD_SPEC = 64
    CANNOT_CONVERT = 65  # of a GGUF export
    DIFFERENT_ANSWERS = 66  # of a GGUF export
    DEVICE_LOST = 69
    INTERNAL = 70
    OUT_OF_MEMORY = 71
    OTHER_BASE = 72  # of an export: the base model's files are not those that the adapter was trained on
    DISK_FULL = 73
    STORAGE = 74
    DRAINED = 75
    PAUSED = 76
    CANCELLED = 77
    KILLED = 137  # SIGKILL ended one of several processes; the code that a shell reports


def training_seconds(job: Mapping[str, Any], now: float | None = None) -> float | None:
    """Return the duration of the training attempts, of a running one until now; None before the first one."""
    if job["started_at"] is None:
        return None
    now = now or time.time()
    return float(job["training_seconds"] + max(0.0, now - (job["attempt_started_at"] or now)))
