"""What can be made of an adapter beside itself, the states of making it, and why it may fail."""

from __future__ import annotations

from enum import StrEnum


class ExportType(StrEnum):
    MERGED = "merged"  # base and adapter as one ordinary model directory, in the base's own 16 bits


class ExportState(StrEnum):
    """queued -> running -> succeeded | failed; running -> queued when an attempt is lost; deleted at any time."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # deleted before it was done: nobody sees it any more


UNFINISHED = frozenset({ExportState.QUEUED, ExportState.RUNNING})
FINISHED = frozenset(ExportState) - UNFINISHED


class ExportError(StrEnum):
    """`error.code` of a failed export."""

    ADAPTER_DELETED = "adapter_deleted"
    MODEL_UNAVAILABLE = "model_unavailable"
    CANNOT_MERGE = "cannot_merge"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"
