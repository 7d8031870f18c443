"""The states of an evaluation, and the codes of its errors."""

from __future__ import annotations

from enum import StrEnum


class EvaluationState(StrEnum):
    """queued -> running -> succeeded | failed | cancelled; running -> queued after a lost attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNFINISHED = frozenset({EvaluationState.QUEUED, EvaluationState.RUNNING})
FINISHED = frozenset(EvaluationState) - UNFINISHED


class EvaluationErrorCode(StrEnum):
    """`error.code` of a failed evaluation."""

    INVALID_FILE = "invalid_evaluation_file"
    ADAPTER_DELETED = "adapter_deleted"
    MODEL_UNAVAILABLE = "model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"
