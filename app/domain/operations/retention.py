"""Retention rules: how long a project keeps its data. Without a rule nothing is deleted for its age."""

from __future__ import annotations

from enum import StrEnum


class RetentionKind(StrEnum):
    FILES = "files"  # uploaded files, from their creation
    CHECKPOINTS = "checkpoints"  # of ended jobs, but the result, from the end of the job; so are the next two
    LOGS = "logs"  # of the trainer
    EVENTS = "events"  # all but the last one
    EXPORTS = "exports"  # from the end of the export


MAX_DAYS = 36_500
