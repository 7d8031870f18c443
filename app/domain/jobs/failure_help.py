"""The reasons for which a job fails or an attempt ends, one entry per `Reason`: cause, remedy, and the message."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.jobs.remedies import REMEDIES
from app.domain.jobs.states import FINAL_STATE, Reason


@dataclass(frozen=True)
class JobErrorCode:
    cause: str
    remedy: str
    message: str


JOB_ERRORS: dict[str, JobErrorCode] = {
    Reason.INVALID_N_EXAMPLES: JobErrorCode(
        "The training file has fewer than ten examples.",
        REMEDIES[Reason.INVALID_N_EXAMPLES],
        "Training file has 9 example(s), but must have at least 10 examples",
    ),
    Reason.INVALID_TRAINING_FILE: JobErrorCode(
        "Invalid examples, a file for another method, or no example with a token to learn.",
        REMEDIES[Reason.INVALID_TRAINING_FILE],
        "The job failed due to an invalid training file. Line 3: message 2 has no role; allowed are …",
    ),
    Reason.INVALID_VALIDATION_FILE: JobErrorCode(
        "Invalid examples in the validation file, or a file for another method.",
        REMEDIES[Reason.INVALID_VALIDATION_FILE],
        'The job failed due to an invalid validation file. Line 7: the last message is from "user", but it must be '
        'from "assistant", which is trained.',
    ),
    Reason.INVALID_EVALUATION_FILE: JobErrorCode(
        "Invalid rows in the file of the job's `evaluation`, or rows without a field that a grader needs. Nothing was "
        "trained.",
        "Correct the listed lines or the grader.",
        'The job failed due to an invalid evaluation file. Line 2: for the grader "label" there is no '
        "{{ item.label }}; item has: messages, reference_answer.",
    ),
    Reason.INVALID_SPEC: JobErrorCode(
        "The trainer found a contradiction between parameters and base model: a module that the model lacks, or a "
        "context length beyond its positions.",
        REMEDIES[Reason.INVALID_SPEC],
        "hyperparameters.context_length is …, but the base model reads at most … tokens; choose up to ….",
    ),
    Reason.MODEL_UNAVAILABLE: JobErrorCode(
        "The base model's directory is missing, changed after its registration, or has parts that cannot be trained.",
        REMEDIES[Reason.MODEL_UNAVAILABLE],
        "The base model … cannot be used: …. The operator can register it again: `tunery models add`.",
    ),
    Reason.OUT_OF_MEMORY: JobErrorCode(
        "The job does not fit into memory, even with the smallest batch and full activation checkpointing.",
        REMEDIES[Reason.OUT_OF_MEMORY],
        "The base model, the adapter (r …) and one document of up to … tokens do not fit into memory. Lower "
        "hyperparameters.context_length first, then lora.r; without quantization, request 4 bits.",
    ),
    Reason.NON_FINITE_LOSS: JobErrorCode(
        "The loss became NaN or infinite.",
        REMEDIES[Reason.NON_FINITE_LOSS],
        "Step … has the loss … and the gradient norm …. It trained on the lines … of the training file. Check those "
        "lines, or lower hyperparameters.learning_rate.",
    ),
    Reason.WORKER_CRASH_LOOP: JobErrorCode(
        "Three consecutive attempts crashed without a new snapshot between them.",
        REMEDIES[Reason.WORKER_CRASH_LOOP],
        "…; gave up after … attempts in a row that ended like this",
    ),
    Reason.ADAPTER_MISMATCH: JobErrorCode(
        "The saved adapter differs from the trained one after loading: a defect. Nothing was published.",
        REMEDIES[Reason.ADAPTER_MISMATCH],
        "The saved adapter, loaded with PEFT, is not what was trained: …. It was not published.",
    ),
    Reason.SERVER_ERROR: JobErrorCode(
        "A defect of the server, such as missing content of a file.",
        REMEDIES[Reason.SERVER_ERROR],
        "The content of … is missing in storage",
    ),
}
_MEANINGS: dict[Reason, str] = {
    Reason.DONE: "the adapter was saved, and verified by loading it with PEFT",
    Reason.DRAINED: "its worker was shut down, or had no answer from PostgreSQL for `TUNERY_SELF_FENCE_SECONDS`; a "
    "snapshot was saved",
    Reason.PREEMPTED: "preempted: an urgent job needed its worker; a snapshot was saved",
    Reason.PAUSED: "on request",
    Reason.CANCELLED: "on request",
    Reason.WORKER_LOST: "the lease expired without a renewal",
    Reason.DEVICE_LOST: "a GPU failed or disappeared while the job ran on it",
    Reason.TRAINER_CRASHED: "the trainer ended by a signal or an unexpected error",
    Reason.KILLED_FOR_MEMORY: "the kernel killed the trainer for lack of memory; the next attempt uses less; the "
    "third time the job fails with `out_of_memory`",
    Reason.SLOT_TOO_SMALL: "the memory of a slot that shares its GPU was too small; the next attempt has a whole GPU",
    Reason.STALLED: "the watchdog stopped the trainer: no record for ten minutes, or for the duration of twenty steps",
    Reason.STORAGE_FULL: "a disk is full; the job waits with the phase `waiting_for_storage` and is retried from its "
    "last snapshot; after `TUNERY_STORAGE_FULL_WAIT_SECONDS` it is paused: delete files, or ask the operator for "
    "space. In earlier versions such a job failed with this code; create it again",
    Reason.STORAGE_UNAVAILABLE: "storage is unreachable; retried until it is available",
}
ATTEMPT_REASONS = {reason: (FINAL_STATE[reason], text) for reason, text in _MEANINGS.items()}
