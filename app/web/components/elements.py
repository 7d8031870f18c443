"""HTML elements by their names. Text is always a text node: user text cannot become markup."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from app.web.api_client import ApiError
from app.web.formatting import clean, clean_lines

MAX_SEGMENT_CHARACTERS = 20_000
MAX_TEXT_CHARACTERS = 4_000
MAX_CODES = 20  # in a paragraph


def tag(name: str, text: str | None = None, classes: str = "", **attributes: Any) -> TextElement:
    """An element, whose text may be that of a user; an underscore in the name of an attribute is a dash, one at its end
    is dropped.
    """
    element = TextElement(tag=name, text=clean_lines(text or "", MAX_TEXT_CHARACTERS))
    if classes:
        element.classes(classes)
    for attribute, value in attributes.items():
        if value is not None:
            element.props[attribute.rstrip("_").replace("_", "-")] = value
    return element


def box(classes: str, **attributes: Any) -> TextElement:
    return tag("div", None, classes, **attributes)


def prose(text: str, classes: str = "") -> TextElement:
    """A paragraph; what is between backticks is code."""
    parts = text[:MAX_TEXT_CHARACTERS].split("`", 2 * MAX_CODES)
    if len(parts) == 1:
        return tag("p", text, classes)
    with tag("p", classes=classes) as element:
        for number, part in enumerate(parts):
            tag("code" if number % 2 else "span", part)
    return element


def folded(label: str, is_open: bool = False) -> TextElement:
    """The content of a part of the page that opens when its label is pressed."""
    with tag("details", open=is_open or None):
        tag("summary", label)
        return box("t-stack")


@contextmanager
def refilled(element: Element) -> Iterator[None]:
    """Replace what is in an element by what the block makes."""
    element.clear()
    with element:
        yield


def button(label: str, on_press: Callable[[], Any] | None = None, classes: str = "") -> TextElement:
    element = tag("button", label, f"t-button {classes}", type="button")
    if on_press is not None:
        handle_press(element, on_press)
    return element


def handle_press(element: TextElement, handler: Callable[[], Any]) -> None:
    """Call `handler` when a button is pressed. Until it has returned, the button shows that it waits."""
    client, html_id = element.client, element.html_id

    async def pressed() -> None:
        try:
            result = handler()
            if inspect.iscoroutine(result):  # a dialog is awaitable, and opens again when it is awaited
                await result
        finally:
            if not client.is_deleted:
                client.run_javascript(f"endPress('{html_id}')")

    element.on("click", pressed, js_handler="(event) => { if (beginPress(event.currentTarget)) emit(); }")


@contextmanager
def page_head(name: str, about: str = "") -> Iterator[None]:
    """The heading of a page about one object, which names its tab as well, with the actions that the block makes."""
    ui.page_title(f"{clean(name, 80)}{about} · Tunery")
    with box("t-title"):
        with tag("h1"):
            tag("bdi", name)
        with box("t-actions"):
            yield


def link(label: str, href: str, classes: str = "", **attributes: Any) -> TextElement:
    return tag("a", label, classes, href=href, **attributes)


def card(title: str | None = None) -> TextElement:
    element = tag("section", classes="t-card")
    if title is not None:
        with element:
            tag("h2", title)
    return element


def facts(values: Mapping[str, str | None], classes: str = "t-facts") -> None:
    """Names with their values; one that is None is left out. The class `t-figures` is for the few that matter."""
    with tag("dl", classes=classes):
        for name, value in values.items():
            if value is not None:
                with tag("div"):
                    tag("dt", name)
                    tag("dd", value)


def note(title: str, text: str = "", tone: str = "", role: str | None = None) -> TextElement:
    """A message: what happened, and what to do. `tone` is bad, warn, ok or empty."""
    with box(f"t-note t-{tone}" if tone else "t-note", role=role) as element:
        tag("div", title, "t-strong")
        if text:
            prose(text)
    return element


def command_note(title: str, text: str, command: str) -> None:
    """A message with the command that it calls for."""
    with note(title, text):
        code_block(command)


def error_note(error: ApiError, title: str | None = None) -> TextElement:
    """What happened and what to do; the API's messages say both."""
    if title is None:
        title = "The API does not answer" if error.is_unreachable else "That did not work"
    return note(title, error.message, "bad", role="alert")


def busy(text: str) -> TextElement:
    return tag("div", text, "t-busy", role="status")


def progress_bar(label: str, fraction: float) -> None:
    """A bar of which `fraction` (0 to 1) is filled."""
    percent = f"{100 * fraction:.0f}"
    values = {"aria_valuenow": percent, "aria_valuemin": "0", "aria_valuemax": "100"}
    with box("t-bar", role="progressbar", aria_label=label, **values):
        tag("div", style=f"width: {percent}%")


def pill(text: str, tone: str) -> TextElement:
    return tag("span", text, f"t-pill t-{tone}")


def code_block(text: str) -> TextElement:
    """Code with a button that copies it. Returns the element with the text."""
    with box("t-stack"):
        tag("button", "Copy", "t-small-button t-copy", type="button").on(
            "click", js_handler="(event) => copyText(event.currentTarget)"
        )
        with tag("pre", classes="t-code", tabindex="0"):
            code = tag("code")
    code.set_text(text)
    return code


def tabs(label: str, labels: Mapping[str, str], show: Callable[[str], Any], selected: str = "") -> Any:
    """A list of tabs, by name, and the panel that `show` fills when one is selected; a coroutine that it returns is
    awaited. The tab `selected`, or the first one, is shown at once, and what `show` returns for it is returned.
    """
    with box("t-stack"):
        with box("t-tabs", role="tablist", aria_label=label):
            buttons = {name: tag("button", text, type="button", role="tab") for name, text in labels.items()}
        panel = box("t-stack", role="tabpanel", tabindex="0")

    def select(selected: str) -> Any:
        for name, one in buttons.items():
            one.props["aria-selected"] = "true" if name == selected else "false"
        panel.client.run_javascript(f"showTab('{buttons[selected].html_id}')")
        panel.props["aria-label"] = labels[selected]
        with refilled(panel):
            return show(selected)

    for name, one in buttons.items():
        handle_press(one, partial(select, name))
    return select(selected if selected in labels else next(iter(labels)))


def chart(options: dict[str, Any], label: str) -> ui.echart:
    element = ui.echart(options).classes("t-chart")
    element.props["role"] = "img"
    element.props["aria-label"] = label
    # The browser evaluates colours once, and has only their values afterwards: the options are sent again.
    element.on("themechange", lambda: element.update(), args=[])
    return element


class Dropzone(Element, component="dropzone.js"):
    """`on_uploaded` gets the path of the page of a single complete file; several files get a link each."""

    def __init__(self, hint: str, on_uploaded: Callable[[str], Any]) -> None:
        super().__init__()
        self._props["hint"] = hint
        self.on("uploaded", lambda event: on_uploaded(str(event.args)))


class TokenView(Element, component="token_view.js"):
    """`segments` are those of a report's preview: text, whether it is trained, and whether it is truncated."""

    def __init__(self, segments: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._props["segments"] = [one | {"text": clean_lines(one["text"], MAX_SEGMENT_CHARACTERS)} for one in segments]
