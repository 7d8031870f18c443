"""The states of a job, their transitions, and the reasons that end an attempt.

    validating_files -> queued -> running -> succeeded | failed | cancelled
    running -> paused -> queued            running -> queued after an attempt without a result

`desired` is the state that the user requested, `state` the actual one. The reason is stored and determines the state.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Desired(StrEnum):
    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class Reason(StrEnum):
    """Why an attempt ended. FINAL_STATE maps it to the next state of the job."""

    DONE = "done"
    DRAINED = "drained"
    PREEMPTED = "gave_way"  # the stored name of a preemption
    PAUSED = "paused"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker_lost"
    TRAINER_CRASHED = "trainer_crashed"
    KILLED_FOR_MEMORY = "killed_for_memory"
    SLOT_TOO_SMALL = "slot_too_small"
    DEVICE_LOST = "device_lost"
    STALLED = "stalled"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    INVALID_N_EXAMPLES = "invalid_n_examples"
    INVALID_TRAINING_FILE = "invalid_training_file"
    INVALID_VALIDATION_FILE = "invalid_validation_file"
    INVALID_EVALUATION_FILE = "invalid_evaluation_file"
    INVALID_SPEC = "invalid_spec"
    MODEL_UNAVAILABLE = "model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    ADAPTER_MISMATCH = "adapter_mismatch"
    SERVER_ERROR = "server_error"


FINAL_STATE: dict[Reason, JobState] = {
    Reason.DONE: JobState.SUCCEEDED,
    Reason.DRAINED: JobState.QUEUED,
    Reason.PREEMPTED: JobState.QUEUED,  # for an urgent job
    Reason.PAUSED: JobState.PAUSED,
    Reason.CANCELLED: JobState.CANCELLED,
    Reason.WORKER_LOST: JobState.QUEUED,
    Reason.TRAINER_CRASHED: JobState.QUEUED,
    Reason.KILLED_FOR_MEMORY: JobState.QUEUED,  # the next attempt uses less memory
    Reason.SLOT_TOO_SMALL: JobState.QUEUED,  # the next attempt has a whole GPU
    Reason.DEVICE_LOST: JobState.QUEUED,
    Reason.STALLED: JobState.QUEUED,
    Reason.STORAGE_UNAVAILABLE: JobState.QUEUED,  # retried until the storage is available
    Reason.STORAGE_FULL: JobState.QUEUED,  # retried with growing pauses; `paused` in the end
    Reason.WORKER_CRASH_LOOP: JobState.FAILED,
    Reason.INVALID_N_EXAMPLES: JobState.FAILED,
    Reason.INVALID_TRAINING_FILE: JobState.FAILED,
    Reason.INVALID_VALIDATION_FILE: JobState.FAILED,
    Reason.INVALID_EVALUATION_FILE: JobState.FAILED,
    Reason.INVALID_SPEC: JobState.FAILED,
    Reason.MODEL_UNAVAILABLE: JobState.FAILED,
    Reason.OUT_OF_MEMORY: JobState.FAILED,
    Reason.NON_FINITE_LOSS: JobState.FAILED,
    Reason.ADAPTER_MISMATCH: JobState.FAILED,
    Reason.SERVER_ERROR: JobState.FAILED,
}

# Crashed attempts count towards the crash streak; drained and paused ones do not.
CRASHES = frozenset(
    {
        Reason.WORKER_LOST,
        Reason.TRAINER_CRASHED,
        Reason.KILLED_FOR_MEMORY,
        Reason.DEVICE_LOST,
        Reason.STALLED,
    }
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
