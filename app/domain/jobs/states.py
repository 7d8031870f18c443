"""The states of a job, what may follow what, and the reasons that end a job.

    validating_files -> queued -> running -> succeeded | failed | cancelled
    running -> paused -> queued            running -> queued when an attempt ends without blame

`desired` is what the user wants; `state` is what is true. A reason is stored, the final state follows from it.
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
    """Why an attempt ended. `final_state` says where the job goes from there."""

    DONE = "done"
    DRAINED = "drained"
    GAVE_WAY = "gave_way"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker_lost"
    TRAINER_CRASHED = "trainer_crashed"
    KILLED_FOR_MEMORY = "killed_for_memory"
    STALLED = "stalled"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    INVALID_N_EXAMPLES = "invalid_n_examples"
    INVALID_TRAINING_FILE = "invalid_training_file"
    INVALID_VALIDATION_FILE = "invalid_validation_file"
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
    Reason.GAVE_WAY: JobState.QUEUED,  # to an urgent job; nobody's fault either
    Reason.PAUSED: JobState.PAUSED,
    Reason.CANCELLED: JobState.CANCELLED,
    Reason.WORKER_LOST: JobState.QUEUED,
    Reason.TRAINER_CRASHED: JobState.QUEUED,
    Reason.KILLED_FOR_MEMORY: JobState.QUEUED,  # and smaller the next time
    Reason.STALLED: JobState.QUEUED,
    Reason.STORAGE_UNAVAILABLE: JobState.QUEUED,  # nobody's fault: tried again until it is back
    Reason.STORAGE_FULL: JobState.QUEUED,  # the same, with growing pauses; `paused` when it lasts
    Reason.WORKER_CRASH_LOOP: JobState.FAILED,
    Reason.INVALID_N_EXAMPLES: JobState.FAILED,
    Reason.INVALID_TRAINING_FILE: JobState.FAILED,
    Reason.INVALID_VALIDATION_FILE: JobState.FAILED,
    Reason.INVALID_SPEC: JobState.FAILED,
    Reason.MODEL_UNAVAILABLE: JobState.FAILED,
    Reason.OUT_OF_MEMORY: JobState.FAILED,
    Reason.NON_FINITE_LOSS: JobState.FAILED,
    Reason.ADAPTER_MISMATCH: JobState.FAILED,
    Reason.SERVER_ERROR: JobState.FAILED,
}

# Attempts that died under us count towards the crash streak; a drain or a pause does not.
CRASHES = frozenset({Reason.WORKER_LOST, Reason.TRAINER_CRASHED, Reason.KILLED_FOR_MEMORY, Reason.STALLED})


class ExitCode:
    """What the trainer's exit code tells its parent (sysexits.h where one fits)."""

    DONE = 0
    BAD_SPEC = 64
    INTERNAL = 70
    OUT_OF_MEMORY = 71
    DISK_FULL = 73
    STORAGE = 74
    DRAINED = 75
    PAUSED = 76
    CANCELLED = 77
    KILLED = 137  # SIGKILL ended one of several processes, said as a shell does


def may_follow(current: JobState, following: JobState) -> bool:
    return following in TRANSITIONS[current]
