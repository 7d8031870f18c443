"""What a panel of the job's page needs when it is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from app.web.frame import View

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class OpenedJob:
    view: View
    job: dict[str, Any]


def refresh_while(is_unfinished: Callable[[], bool], refresh: Callable[[], Awaitable[None]]) -> None:
    """Refresh a panel while something that it shows is unfinished: not every change of it is one of the job."""

    async def poll() -> None:
        if is_unfinished():
            await refresh()

    ui.timer(POLL_SECONDS, poll)
