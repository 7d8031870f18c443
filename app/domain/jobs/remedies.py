"""What to do about a failed job, by the reason that ended it: in the operator's status and on the page of errors."""

from __future__ import annotations

from app.domain.jobs.states import Reason

REMEDIES: dict[Reason, str] = {
    Reason.INVALID_N_EXAMPLES: "Add examples. An operator may lower `TUNERY_MIN_TRAINING_EXAMPLES`.",
    Reason.INVALID_TRAINING_FILE: (
        "Correct the listed lines (the first ten findings, and the number of the others), and upload the file again."
    ),
    Reason.INVALID_VALIDATION_FILE: (
        "Correct the listed lines and upload the file again, or create the job without a validation file."
    ),
    Reason.INVALID_SPEC: "Change the parameter in `param`.",
    Reason.MODEL_UNAVAILABLE: "Ask the operator to register the base model again, or choose another one.",
    Reason.OUT_OF_MEMORY: (
        "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts whether a job fits."
    ),
    Reason.NON_FINITE_LOSS: "Check the listed lines, or lower the learning rate.",
    Reason.WORKER_CRASH_LOOP: "Ask the operator: the log of the job has the reason of each crash.",
    Reason.ADAPTER_MISMATCH: "Report it to the operator, with the id of the job.",
    Reason.SERVER_ERROR: "Ask the operator, with the id of the job.",
    Reason.STORAGE_FULL: "Delete files, or ask the operator for space; then create the job again.",
}
# Failures that the user of the job cannot prevent.
OPERATOR_REASONS = frozenset(
    {Reason.MODEL_UNAVAILABLE, Reason.WORKER_CRASH_LOOP, Reason.ADAPTER_MISMATCH, Reason.SERVER_ERROR}
)


def remedy(reason: str | None) -> str | None:
    """The remedy for the error code of a failed job; None for a code of an earlier release."""
    return next((text for known, text in REMEDIES.items() if known.value == reason), None)
