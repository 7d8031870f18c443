"""Exports of an adapter: their types, states and error codes."""

from __future__ import annotations

from enum import StrEnum


class ExportType(StrEnum):
    MERGED = "merged"  # base and adapter merged into one model directory, in the base's own 16-bit type


class ExportState(StrEnum):
    """queued -> running -> succeeded | failed; running -> queued after a lost attempt; deletable in every state."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # deleted before it was finished; hidden from clients


UNFINISHED = frozenset({ExportState.QUEUED, ExportState.RUNNING})
FINISHED = frozenset(ExportState) - UNFINISHED


class ExportErrorCode(StrEnum):
    """`error.code` of a failed export."""

    ADAPTER_DELETED = "adapter_deleted"
    MODEL_UNAVAILABLE = "model_unavailable"
    CANNOT_MERGE = "cannot_merge"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"
