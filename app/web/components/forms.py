"""Native form fields with a label, a hint and an error, whose value is on the server; and dialogs.

An input has its first value as `defaultValue`: Vue sets a property `value` again at every update of the page, which
would take back what is being typed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from app.web.api_client import ApiError
from app.web.components.elements import box, button, error_note, tag
from app.web.formatting import clean

TYPING_PAUSE_SECONDS = 0.3
MAX_SEARCH_CHARACTERS = 200  # the limit of the API
VALUE_OF_EVENT = "(event) => emit(event.target.value)"
CHECKED_OF_EVENT = "(event) => emit(event.target.checked)"


class Field:
    """One input. `value` is the text in the browser as of the last event."""

    def __init__(
        self, element: Element, value: str, error: TextElement | None = None, hint: TextElement | None = None
    ) -> None:
        self.element = element
        self.value = value
        self.hint = hint
        self._error = error

    def set_error(self, text: str) -> None:
        if self._error is not None:
            self._error.set_text(text)
        self.element.props["aria-invalid"] = "true" if text else "false"


def text_field(
    label: str,
    value: str = "",
    hint: str = "",
    on_change: Callable[[], Any] | None = None,
    kind: str = "text",
    classes: str = "",
    **attributes: Any,
) -> Field:
    with box(f"t-field {classes}"):
        name = _label(label)
        element = tag("input", classes="t-input", type=kind, defaultValue=value, **attributes)
        return _connect(element, name, value, hint, on_change, "input")


def text_area(label: str, value: str = "", hint: str = "", on_change: Callable[[], Any] | None = None) -> Field:
    with box("t-field"):
        name = _label(label)
        element = tag("textarea", classes="t-input", defaultValue=value)
        return _connect(element, name, value, hint, on_change, "input")


def select_field(
    label: str,
    options: Mapping[str, str],
    value: str = "",
    hint: str = "",
    on_change: Callable[[], Any] | None = None,
    classes: str = "",
) -> Field:
    """`options` are the texts by value; a value that is no option selects the first one."""
    value = value if value in options else next(iter(options), "")
    with box(f"t-field {classes}"):
        name = _label(label)
        with tag("select", classes="t-input") as element:
            for option, text in options.items():
                tag("option", text, value=option, selected=option == value or None)
        return _connect(element, name, value, hint, on_change, "change")


def filter_select(label: str, options: Mapping[str, str], value: str, on_change: Callable[[], Any]) -> Field:
    """A select without a visible label; a value that is no option, such as two statuses in an address, is added."""
    options = options if value in options else {**options, value: clean(value, 60)}
    with tag("select", classes="t-input", aria_label=label) as element:
        for option, text in options.items():
            tag("option", text, value=option, selected=option == value or None)
    return _connect(element, None, value, "", on_change, "change")


def filter_text(label: str, value: str, on_change: Callable[[], Any]) -> Field:
    shown = {"placeholder": label, "aria_label": label, "maxlength": str(MAX_SEARCH_CHARACTERS)}
    element = tag("input", classes="t-input t-search", type="search", defaultValue=value, **shown)
    return _connect(element, None, value, "", on_change, "input")


def checkbox(label: str, value: bool, on_change: Callable[[bool], Any]) -> Element:
    with tag("label", classes="t-row") as element:
        box = tag("input", type="checkbox", checked=value or None)
        box.on("change", lambda event: on_change(bool(event.args)), js_handler=CHECKED_OF_EVENT)
        tag("span", label)
    return element


def _label(label: str) -> TextElement:
    return tag("label", label)


def _connect(
    element: Element, label: TextElement | None, value: str, hint: str, on_change: Callable[[], Any] | None, event: str
) -> Field:
    if label is not None:
        element.props["id"] = element.html_id
        label.props["for"] = element.html_id
    hint_element = tag("div", hint, "t-hint", aria_live="polite") if hint else None
    error = tag("div", "", "t-hint t-error", aria_live="polite") if label is not None else None
    if hint_element is not None:
        element.props["aria-describedby"] = hint_element.html_id
    field = Field(element, value, error, hint_element)

    def changed(arguments: Any) -> Any:
        value = str(arguments.args)
        if value == field.value:
            return None
        field.value = value
        return on_change() if on_change is not None else None

    element.on("change", changed, js_handler=VALUE_OF_EVENT)  # when the field is left, thus before a button is pressed
    if event == "input":
        element.on(event, changed, js_handler=VALUE_OF_EVENT, throttle=TYPING_PAUSE_SECONDS, leading_events=False)
    return field


def ask(question: str, label: str, act: Callable[[], Awaitable[None]]) -> None:
    """Show a dialog with the question. Its button `label` calls `act`, and the dialog stays until that has returned."""

    async def confirm() -> None:
        try:
            await act()
        finally:
            if not dialog.is_deleted:  # it was closed meanwhile
                dialog.close()

    with _opened(question) as dialog, box("t-card t-dialog", role="document"):
        tag("h2", question)
        with box("t-actions"):
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

    with _opened(title) as dialog, box("t-card t-dialog", role="document"):
        tag("h2", title)
        yield
        refusal = tag("div")
        with box("t-actions"):
            button(label, confirm, "t-primary")
            button("Close", dialog.close)


def _opened(name: str) -> ui.dialog:
    dialog = ui.dialog(value=True)
    dialog.props["aria-label"] = name
    dialog.on("hide", dialog.delete)
    return dialog
