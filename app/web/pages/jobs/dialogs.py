"""Dialogs: a question before an action, and a form whose request may be refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from nicegui import ui

from app.web.api_client import ApiError
from app.web.components.elements import button, tag
from app.web.frame import error_note


def ask(question: str, label: str, act: Callable[[], Awaitable[None]]) -> None:
    """Show a dialog with the question. Its button `label` calls `act`, and the dialog stays until that has returned."""

    async def confirm() -> None:
        try:
            await act()
        finally:
            if not dialog.is_deleted:  # it was closed meanwhile
                dialog.close()

    with _opened(question) as dialog, tag("div", classes="t-card t-dialog", role="document"):
        tag("h2", question)
        with tag("div", classes="t-actions"):
            button(label, confirm, "t-danger")
            button("Keep it", dialog.close)


@contextmanager
def form_dialog(title: str, label: str, send: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Show a dialog with the fields that the block makes. Its button `label` calls `send`; while the API refuses the
    request, the dialog stays, with the reason.
    """

    async def confirm() -> None:
        refusal.clear()
        try:
            await send()
        except ApiError as error:
            if not dialog.is_deleted:
                with refusal:
                    error_note(error)
            return
        if not dialog.is_deleted:
            dialog.close()

    with _opened(title) as dialog, tag("div", classes="t-card t-dialog", role="document"):
        tag("h2", title)
        yield
        refusal = tag("div")
        with tag("div", classes="t-actions"):
            button(label, confirm, "t-primary")
            button("Close", dialog.close)


def _opened(name: str) -> ui.dialog:
    dialog = ui.dialog(value=True)
    dialog.props["aria-label"] = name
    dialog.on("hide", dialog.delete)
    return dialog
