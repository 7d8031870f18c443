"""The actions on a job, each offered only in the states in which the API accepts it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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


def ask(question: str, label: str, act: Callable[[], Awaitable[None]]) -> None:
    """Show a dialog with the question. Its button `label` calls `act`, and the dialog stays until that has returned."""

    async def confirm() -> None:
        try:
            await act()
        finally:
            if not dialog.is_deleted:  # it was closed meanwhile
                dialog.close()

    with ui.dialog(value=True) as dialog, tag("div", classes="t-card t-dialog", role="document"):
        tag("h2", question)
        with tag("div", classes="t-actions"):
            button(label, confirm, "t-danger")
            button("Keep it", dialog.close)
    dialog.props["aria-label"] = question
    dialog.on("hide", dialog.delete)
