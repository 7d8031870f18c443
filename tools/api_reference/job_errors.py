"""The reasons for which a job fails or an attempt ends, one entry per `Reason`."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.jobs.states import FINAL_STATE, Reason


@dataclass(frozen=True)
class JobErrorCode:
    cause: str
    remedy: str
    message: str


JOB_ERRORS: dict[Reason, JobErrorCode] = {
    Reason.INVALID_N_EXAMPLES: JobErrorCode(
        "The training file has fewer than ten examples.",
        "Add some. An operator may lower `TUNERY_MIN_TRAINING_EXAMPLES`.",
        "Training file has 9 example(s), but must have at least 10 examples",
    ),
    Reason.INVALID_TRAINING_FILE: JobErrorCode(
        "Invalid examples, a file for another method, or no example with a token to learn.",
        "Correct the listed lines: up to ten findings with line numbers, and the number of the others.",
        "The job failed due to an invalid training file. Line 3: message 2 has no role; allowed are …",
    ),
    Reason.INVALID_VALIDATION_FILE: JobErrorCode(
        "The same problems in the validation file.",
        "Correct it, or omit it.",
        'The job failed due to an invalid validation file. Line 7: the last message is from "user", but it must be '
        'from "assistant", which is trained.',
    ),
    Reason.INVALID_SPEC: JobErrorCode(
        "The trainer found a contradiction between parameters and base model: a module that the model lacks, or a "
        "context length beyond its positions.",
        "Change the parameter in `param`.",
        "hyperparameters.context_length is …, but the base model reads at most … tokens; choose up to ….",
    ),
    Reason.MODEL_UNAVAILABLE: JobErrorCode(
        "The base model's directory is missing, changed after its registration, or has parts that cannot be trained.",
        "Ask the operator to register it again, or choose another.",
        "The base model … cannot be used: …. The operator can register it again: `tunery models add`.",
    ),
    Reason.OUT_OF_MEMORY: JobErrorCode(
        "The job does not fit into memory, even with the smallest batch and full activation checkpointing.",
        "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts whether a job fits.",
        "The base model, the adapter (r …) and one document of up to … tokens do not fit into memory. Lower "
        "hyperparameters.context_length first, then lora.r; without quantization, request 4 bits.",
    ),
    Reason.NON_FINITE_LOSS: JobErrorCode(
        "The loss became NaN or infinite.",
        "Check the listed lines, or lower the learning rate.",
        "Step … has the loss … and the gradient norm …. It trained on the lines … of the training file. Check those "
        "lines, or lower hyperparameters.learning_rate.",
    ),
    Reason.WORKER_CRASH_LOOP: JobErrorCode(
        "Three consecutive attempts crashed without a new snapshot between them.",
        "Ask the operator: the log of the job has the reason of each crash.",
        "…; gave up after … attempts in a row that ended like this",
    ),
    Reason.ADAPTER_MISMATCH: JobErrorCode(
        "The saved adapter differs from the trained one after loading: a defect. Nothing was published.",
        "Report it.",
        "The saved adapter, loaded with PEFT, is not what was trained: …. It was not published.",
    ),
    Reason.SERVER_ERROR: JobErrorCode(
        "A defect of the server, such as missing content of a file.",
        "Ask the operator.",
        "The content of … is missing in storage",
    ),
}
_MEANINGS: dict[Reason, str] = {
    Reason.DONE: "the adapter was saved, and verified by loading it with PEFT",
    Reason.DRAINED: "its worker was shut down; a snapshot was saved",
    Reason.PREEMPTED: "preempted: an urgent job needed its worker; a snapshot was saved",
    Reason.PAUSED: "on request",
    Reason.CANCELLED: "on request",
    Reason.WORKER_LOST: "the lease expired without a renewal",
    Reason.TRAINER_CRASHED: "the trainer ended by a signal or an unexpected error",
    Reason.KILLED_FOR_MEMORY: "the kernel killed the trainer for lack of memory; the next attempt uses less; the "
    "third time the job fails with `out_of_memory`",
    Reason.STALLED: "the watchdog stopped the trainer: no record for ten minutes, or for the duration of twenty steps",
    Reason.STORAGE_FULL: "a disk is full; the job waits with the phase `waiting_for_storage` and is retried from its "
    "last snapshot; after `TUNERY_STORAGE_FULL_WAIT_SECONDS` it is paused: delete files, or ask the operator for "
    "space. In earlier versions such a job failed with this code; create it again",
    Reason.STORAGE_UNAVAILABLE: "storage is unreachable; retried until it is available",
}
ATTEMPT_REASONS = {reason: (FINAL_STATE[reason], text) for reason, text in _MEANINGS.items()}
