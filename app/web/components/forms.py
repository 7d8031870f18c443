"""Native form fields with a label, a hint and an error, whose value is on the server; and dialogs.

An input has its first value as `defaultValue`: Vue sets a property `value` again at every update of the page, which
would take back what is being typed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
CHECKED_OF_EVENT = "(event) => emit(event.target.checked ? 'true' : '')"

OnChange = Callable[[], Any] | None


class Field:
    """One input. `value` is the text in the browser as of the last event. Hint and error are below a labelled one."""

    def __init__(
        self, element: Element, value: str, on_change: OnChange, label: TextElement | None = None, hint: str = ""
    ) -> None:
        self.element = element
        self.value = value
        self._on_change = on_change
        self._error: TextElement | None = None
        if label is not None:
            element.props["id"] = label.props["for"] = element.html_id
            if hint:
                self.hint = tag("div", hint, "t-hint")
                element.props["aria-describedby"] = self.hint.html_id
            self._error = tag("div", "", "t-hint t-error", aria_live="polite")
        script = CHECKED_OF_EVENT if element.props.get("type") == "checkbox" else VALUE_OF_EVENT
        element.on("change", self._changed, js_handler=script)  # when it is left, thus before a button is pressed
        if "defaultValue" in element.props:
            pause = TYPING_PAUSE_SECONDS
            element.on("input", self._changed, js_handler=script, throttle=pause, leading_events=False)

    def set_error(self, text: str) -> None:
        if self._error is not None:
            self._error.set_text(text)
        self.element.props["aria-invalid"] = "true" if text else "false"

    def _changed(self, event: Any) -> Any:
        if event.args == self.value:
            return None
        self.value = str(event.args)
        return self._on_change() if self._on_change is not None else None


def text_field(
    label: str,
    value: str = "",
    hint: str = "",
    on_change: OnChange = None,
    kind: str | None = "text",
    name: str = "input",
    **attributes: Any,
) -> Field:
    with box("t-field"):
        label_element = tag("label", label)
        element = tag(name, classes="t-input", type=kind, defaultValue=value, **attributes)
        return Field(element, value, on_change, label_element, hint)


text_area = partial(text_field, name="textarea", kind=None)


def select_field(
    label: str, options: Mapping[str, str], value: str = "", hint: str = "", on_change: OnChange = None
) -> Field:
    """`options` are the texts by value; a value that is no option selects the first one."""
    value = value if value in options else next(iter(options), "")
    with box("t-field"):
        label_element = tag("label", label)
        return Field(_select(options, value), value, on_change, label_element, hint)


def filter_select(label: str, options: Mapping[str, str], value: str, on_change: OnChange) -> Field:
    """A select without a visible label; a value that is no option, such as two statuses in an address, is added."""
    options = options if value in options else {**options, value: clean(value, 60)}
    return Field(_select(options, value, aria_label=label), value, on_change)


def filter_text(label: str, value: str, on_change: OnChange) -> Field:
    shown = {"placeholder": label, "aria_label": label, "maxlength": str(MAX_SEARCH_CHARACTERS)}
    element = tag("input", classes="t-input t-search", type="search", defaultValue=value, **shown)
    return Field(element, value, on_change)


def checkbox(label: str, value: str, on_change: OnChange) -> Field:
    """Its value is "true" or ""."""
    with tag("label", classes="t-row"):
        field = Field(tag("input", type="checkbox", checked=bool(value) or None), value, on_change)
        tag("span", label)
    return field


def _select(options: Mapping[str, str], value: str, **attributes: Any) -> TextElement:
    with tag("select", classes="t-input", **attributes) as element:
        for option, text in options.items():
            tag("option", text, value=option, selected=option == value or None)
    return element


def ask(question: str, label: str, act: Callable[[], Awaitable[None]]) -> None:
    """Show a dialog with the question. Its button `label` calls `act`."""
    with form_dialog(question, label, act, "t-danger", "Keep it"):
        pass


@contextmanager
def form_dialog(
    title: str, label: str, send: Callable[[], Awaitable[None]], classes: str = "t-primary", close: str = "Close"
) -> Iterator[None]:
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
        if not dialog.is_deleted:  # it was closed meanwhile
            dialog.close()

    with ui.dialog(value=True) as dialog, box("t-card t-dialog", role="document"):
        dialog.props["aria-label"] = clean(title)
        dialog.on("hide", dialog.delete)
        tag("h2", title)
        yield
        refusal = tag("div")
        with box("t-actions"):
            button(label, confirm, classes)
            button(close, dialog.close)
