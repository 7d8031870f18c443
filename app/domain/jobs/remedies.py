"""What to do about a failed job, by the reason that ended it: in the operator's status and on the page of errors."""

from __future__ import annotations

from app.domain.jobs.states import Reason

REMEDIES: dict[Reason, str] = {
    Reason.INVALID_N_EXAMPLES: "Add some. An operator may lower `TUNERY_MIN_TRAINING_EXAMPLES`.",
    Reason.INVALID_TRAINING_FILE: (
        "Correct the listed lines: up to ten findings with line numbers, and the number of the others."
    ),
    Reason.INVALID_VALIDATION_FILE: "Correct it, or omit it.",
    Reason.INVALID_SPEC: "Change the parameter in `param`.",
    Reason.MODEL_UNAVAILABLE: "Ask the operator to register it again, or choose another.",
    Reason.OUT_OF_MEMORY: (
        "Change the parameter in `param`; `POST /v1/fine_tuning/jobs/plan` predicts whether a job fits."
    ),
    Reason.NON_FINITE_LOSS: "Check the listed lines, or lower the learning rate.",
    Reason.WORKER_CRASH_LOOP: "Ask the operator: the log of the job has the reason of each crash.",
    Reason.ADAPTER_MISMATCH: "Report it.",
    Reason.SERVER_ERROR: "Ask the operator.",
    Reason.STORAGE_FULL: "Delete files, or ask the operator for space; then create the job again.",
}
# Failures that the user of the job cannot prevent.
OPERATOR_REASONS = frozenset(
    {Reason.MODEL_UNAVAILABLE, Reason.WORKER_CRASH_LOOP, Reason.ADAPTER_MISMATCH, Reason.SERVER_ERROR}
)


def remedy(reason: str | None) -> str | None:
    """The remedy for the error code of a failed job; None for a code of an earlier release."""
    return next((text for known, text in REMEDIES.items() if known.value == reason), None)
