"""The actions on a job, each offered only in the states in which the API accepts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Action:
    name: str  # of the call
    label: str
    statuses: tuple[str, ...]
    classes: str = ""
    question: str | None = None  # asked first

    def is_offered(self, job: dict[str, Any]) -> bool:
        return job["status"] in self.statuses and not (self.name == "pause" and job.get("pause_requested"))


ACTIONS = (
    Action("pause", "Pause", ("queued", "running")),
    Action("resume", "Resume", ("paused",), "t-primary"),
    Action(
        "cancel",
        "Cancel job",
        ("validating_files", "queued", "running", "paused"),
        "t-danger",
        "Cancel this job? A cancelled job cannot be resumed; its checkpoints are kept.",
    ),
)
