"""The first rows of a dataset, each as a chat."""

from __future__ import annotations

import json
from typing import Any

from app.web.api_client import ApiClient, ApiError
from app.web.components.elements import box, busy, button, refilled, tag
from app.web.formatting import size

FIRST_BYTES = 512 << 10
ROWS_SHOWN = 5
STYLED_ROLES = ("system", "user", "assistant", "tool")
ROLES = {  # by the keys of the formats other than chat
    "prompt": "user",
    "completion": "assistant",
    "preferred_output": "preferred",
    "non_preferred_output": "other",
    "text": "text",
    "label": "label",
}


async def show_rows(api: ApiClient, file_id: str) -> None:
    """Read the beginning of the file and show its rows, a few at a time."""
    try:
        rows, is_whole = await _first_rows(api, file_id)
    except ApiError as error:
        tag("p", error.message, "t-muted")
        return
    body = box("t-stack")

    def show_more() -> None:
        with body:
            for number, row in [rows.pop(0) for _ in range(min(ROWS_SHOWN, len(rows)))]:
                show_row(f"Line {number:,}", row)
        more.set_visibility(bool(rows))
        end.set_visibility(not rows and not is_whole)

    more = button("Show more rows", show_more)
    end = tag("p", f"Rows beyond the first {size(FIRST_BYTES)} are not shown here; Download has all.", "t-muted")
    show_more()


async def _first_rows(api: ApiClient, file_id: str) -> tuple[list[tuple[int, Any]], bool]:
    """(line number, row) of the lines that are complete within the first bytes, and whether these are all lines.

    A line that is no JSON is text.
    """
    content = b""
    headers = {"Range": f"bytes=0-{FIRST_BYTES - 1}"}
    async with api.stream("GET", f"files/{file_id}/content", headers=headers, read_seconds=20) as response:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) >= FIRST_BYTES:
                break
    lines = content.split(b"\n")
    is_whole = len(content) < FIRST_BYTES
    complete = lines if is_whole else lines[:-1]
    return [(number, _parse(line)) for number, line in enumerate(complete, start=1) if line.strip()], is_whole


async def show_line(api: ApiClient, file_id: str, number: int, parent: Any) -> None:
    """Read the file up to a line, and show its row, highlighted and in view."""
    show_parent = f"showElement('{parent.html_id}')"
    with refilled(parent):
        waiting = busy(f"Reading up to line {number:,} ...")
    parent.client.run_javascript(show_parent)
    try:
        line = await line_at(api, file_id, number)
    except ApiError:
        parent.clear()
        raise
    if waiting.is_deleted:  # another line was opened meanwhile
        return
    with refilled(parent), box("t-opened", role="group", aria_label=f"Row of line {number:,}"):
        if line is None:
            tag("p", f"The file has no line {number:,}.")
        else:
            show_row(f"Line {number:,}", _parse(line))
    parent.client.run_javascript(show_parent)


async def line_at(api: ApiClient, file_id: str, number: int) -> bytes | None:
    """The first bytes of a line, counted from 1; None beyond the end."""
    found, ends_before = b"", number - 1
    async with api.stream("GET", f"files/{file_id}/content", read_seconds=20) as response:
        async for chunk in response.aiter_bytes():
            ends = chunk.count(b"\n")
            if ends < ends_before:
                ends_before -= ends
                continue
            line, end, _ = chunk.split(b"\n", ends_before)[-1].partition(b"\n")
            ends_before = 0
            found = (found + line)[:FIRST_BYTES]
            if end or len(found) == FIRST_BYTES:
                return found
    return found or None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode("utf-8", "replace")


def show_chat(title: str, messages: list[Any]) -> None:
    """Show messages below a title; a role that is none of a chat is shown as it is."""
    _show_messages(title, [_message(one) for one in messages])


def show_row(title: str, row: Any) -> None:
    _show_messages(title, _messages(row))


def _show_messages(title: str, messages: list[tuple[str, str]]) -> None:
    with box("t-chat"):
        tag("div", title, "t-label t-muted")
        for role, text in messages:
            with box(f"t-message t-{role if role in STYLED_ROLES else 'user'}"):
                tag("div", role, "t-role")
                tag("p", text, dir="auto")


def _messages(row: Any) -> list[tuple[str, str]]:
    """(role, text) of a row in any of the formats; what is none of them is shown as it is."""
    fields = row if isinstance(row, dict) else {}
    source = fields if "messages" in fields else fields.get("input")
    chat = source.get("messages") if isinstance(source, dict) else None
    found = [_message(one) for one in chat] if isinstance(chat, list) else []
    found += [(role, _text(fields[name])) for name, role in ROLES.items() if name in fields]
    return found or [("text", _text(row))]


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        return "text", _text(message)
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    text = _text(message.get("content") or "")
    return str(message.get("role", "no role")), f"{text}\n{_text(rest)}".strip() if rest else text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
