"""Why a job failed, and why an attempt ended without that: one entry for each `Reason`."""

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
        "Examples that can't be learned as they are, a file for another method, or none with a token to learn.",
        "Mend the lines that are named: up to ten findings with line numbers, the rest counted.",
        "The job failed due to an invalid training file. Line 3: message 2 has no role; allowed are …",
    ),
    Reason.INVALID_VALIDATION_FILE: JobErrorCode(
        "The same of the validation file.",
        "Mend it, or leave it out.",
        'The job failed due to an invalid validation file. Line 7: the last message is from "user", but it must be '
        'from "assistant", as that is learned.',
    ),
    Reason.INVALID_SPEC: JobErrorCode(
        "The trainer can't do what was asked, which only it could see: a module that the model lacks, more "
        "tokens than it has positions for.",
        "Change the knob in `param`.",
        "hyperparameters.context_length is …, but the base model reads at most … tokens; choose up to ….",
    ),
    Reason.MODEL_UNAVAILABLE: JobErrorCode(
        "The base model's directory is gone, has changed since it was registered, or has parts that can't be trained.",
        "Ask the operator to register it again, or choose another.",
        "The base model … cannot be used: …. The operator can register it again: `tunery models add`.",
    ),
    Reason.OUT_OF_MEMORY: JobErrorCode(
        "It does not fit, even with the smallest row and everything recomputed.",
        "Turn the knob in `param`; `POST /v1/fine_tuning/jobs/plan` says beforehand what fits.",
        "The base model, the adapter (r …) and one document of up to … tokens do not fit into memory. Lower "
        "hyperparameters.context_length first, then lora.r; without quantization, request 4 bits.",
    ),
    Reason.NON_FINITE_LOSS: JobErrorCode(
        "The loss became NaN or infinite.",
        "Look at the lines that are named, or lower the learning rate.",
        "Step … has the loss … and the gradient norm …. It trained on the lines … of the training file. Check those "
        "lines, or lower hyperparameters.learning_rate.",
    ),
    Reason.WORKER_CRASH_LOOP: JobErrorCode(
        "Three attempts in a row died without a new snapshot between them.",
        "Ask the operator: the log of the job has what each of them died of.",
        "…; gave up after … attempts in a row that ended like this",
    ),
    Reason.ADAPTER_MISMATCH: JobErrorCode(
        "What was saved and loaded again is not what was trained: a defect. Nothing was published.",
        "Please report it.",
        "The saved adapter, loaded with PEFT, is not what was trained: …. It was not published.",
    ),
    Reason.SERVER_ERROR: JobErrorCode(
        "Something of ours is gone or broken, such as the bytes of a file.",
        "Ask the operator.",
        "The content of … is missing in storage",
    ),
}
_MEANT: dict[Reason, str] = {
    Reason.DONE: "the adapter was saved, loaded by PEFT and found equal",
    Reason.DRAINED: "its worker was stopped; a snapshot was taken",
    Reason.GAVE_WAY: "an urgent job needed its worker; a snapshot was taken",
    Reason.PAUSED: "as asked",
    Reason.CANCELLED: "as asked",
    Reason.WORKER_LOST: "the lease ran out without a renewal",
    Reason.TRAINER_CRASHED: "the trainer died by a signal or an unexpected error",
    Reason.KILLED_FOR_MEMORY: "the kernel killed the trainer for memory; the next attempt plans with less; the third "
    "time it is `out_of_memory`",
    Reason.STALLED: "the trainer said nothing for ten minutes, or for twenty steps' time",
    Reason.STORAGE_FULL: "a disk is full; the job waits with the phase `waiting_for_storage` and is tried again from "
    "its last snapshot, and after `TUNERY_STORAGE_FULL_WAIT_SECONDS` it is paused: delete files, or ask the operator "
    "for space. In earlier versions such a job failed with this code; create it again",
    Reason.STORAGE_UNAVAILABLE: "storage could not be reached; tried again until it is back",
}
ENDINGS = {reason: (FINAL_STATE[reason], text) for reason, text in _MEANT.items()}
