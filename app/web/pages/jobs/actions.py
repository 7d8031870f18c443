"""The actions on a job, each offered only in the states in which the API accepts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nicegui import ui

from app.web.components.elements import button, tag


@dataclass(frozen=True)
class Action:
    name: str  # of the call
    label: str
    statuses: tuple[str, ...]
    classes: str = ""
    question: str | None = None  # asked first

    def is_offered(self, job: dict[str, Any]) -> bool:
        return job["status"] in self.statuses


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


async def confirm(name: str) -> bool:
    """Ask the question of an action, if it has one."""
    action = next(action for action in ACTIONS if action.name == name)
    return action.question is None or await ask(action.question, action.label)


async def ask(question: str, label: str) -> bool:
    """Show a dialog with the question; whether it was answered with `label`."""
    with ui.dialog() as dialog, tag("div", classes="t-card t-dialog", role="document"):
        tag("h2", question)
        with tag("div", classes="t-actions"):
            button(label, lambda: dialog.submit(True), "t-danger")
            button("Keep it", lambda: dialog.submit(False))
    answer = bool(await dialog)
    dialog.delete()
    return answer
