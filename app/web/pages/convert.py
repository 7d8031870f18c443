"""A CSV becomes JSONL: choose the columns, see the first examples, and upload the result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import PurePath
from typing import Any

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.web.api_client import ApiError, Json
from app.web.components.elements import box, busy, button, card, error_note, link, note, refilled, tag
from app.web.components.forms import Field, select_field, text_field
from app.web.csv_tables import Columns, TableError, json_line
from app.web.formatting import size
from app.web.frame import View, screen
from app.web.transfers import create_upload, send_piece

PREVIEW_ROWS = 3
PIECE_BYTES = 4 << 20
MAX_LISTED_COLUMNS = 500  # a select with more is slow; any column can be typed
USER_NAMES = ("user", "prompt", "question", "input", "text", "instruction", "message")
ASSISTANT_NAMES = ("assistant", "completion", "answer", "output", "label", "response", "target")


@screen("/datasets/convert/{table_id}", "CSV to JSONL")
class ConvertPage(View):
    async def build(self) -> None:
        tag("h1", "CSV to JSONL")
        try:
            table = self.tables.get(self.session.token, self.path("table_id"))
            names = await asyncio.to_thread(table.header)
        except TableError as error:
            error_note(error, "The file cannot be read")
            link("Datasets", "/datasets", "t-button")
            return
        self._table, self._names = table, names
        about = f"{table.filename}: {counted(len(names), 'column')}, {size(table.size_bytes)}."
        tag("p", about, "t-lede")
        with card("Columns"):
            text = "Each row becomes a chat: the user's message, and the assistant's answer that the model learns. "
            tag("p", text + "For a classification the answer is the label.", "t-lede")
            first, last = (names[0], names[-1]) if len(names) == 2 else ("", "")
            with box("t-grid"):
                self._user = self._column_field("User (question)", _guess(names, USER_NAMES, first))
                self._assistant = self._column_field("Assistant (answer)", _guess(names, ASSISTANT_NAMES, last))
                self._system = self._column_field("System prompt (optional)", "", "None")
        with card("Preview"):
            self._preview = box("t-stack")
        with box("t-actions"):
            button("Convert and upload", self._convert, "t-primary")
            link("Cancel", "/datasets", "t-button")
        self._result = tag("div")
        ui.timer(0.05, self._show_preview, once=True)

    def _column_field(self, label: str, value: str, nothing: str = "Choose a column") -> Field:
        """A select, or a text field where a select would be slow."""
        if len(self._names) > MAX_LISTED_COLUMNS:
            return text_field(label, value, "The name of a column.", self._show_preview)
        options = {"": nothing} | {name: name for name in self._names if name.strip()}
        return select_field(label, options, value, on_change=self._show_preview)

    def _columns(self, is_marked: bool = True) -> Columns | None:
        """The chosen columns; None, with an error at the field if `is_marked`, if one does not exist."""
        errors = {field: self._error(field) for field in (self._user, self._assistant, self._system)}
        for field, error in errors.items():
            field.set_error(error if is_marked else "")
        if any(errors.values()):
            return None
        return Columns(self._user.value, self._assistant.value, self._system.value or None)

    def _error(self, field: Field) -> str:
        if not field.value:
            return "" if field is self._system else "Choose a column."
        if field.value not in self._names:
            return "There is no column with this name."
        is_twice = field is self._assistant and field.value == self._user.value
        return "The question and the answer are the same column. Choose two." if is_twice else ""

    async def _show_preview(self) -> None:
        columns = self._columns(is_marked=bool(self._user.value and self._assistant.value))
        with refilled(self._preview):
            if columns is None:
                tag("p", "The first rows appear when the columns are chosen.", "t-muted")
                return
            try:
                examples = await asyncio.to_thread(lambda: list(islice(self._table.examples(columns), PREVIEW_ROWS)))
            except TableError as error:
                error_note(error, "The table has a problem")
                return
            if not examples:
                note("No row has both", "Every row has an empty question or an empty answer.", "warn")
            for example in examples:
                line = json_line(example).decode()
                tag("pre", line, "t-code t-log", tabindex="0")

    async def _convert(self) -> None:
        columns = self._columns()
        if columns is None:
            return
        with refilled(self._result):
            waiting = busy("Converting ...")
        try:
            file = await self._upload(columns, waiting.set_text)
        finally:
            self._result.clear()
        self.tables.discard(self._table)
        ui.navigate.to(f"/datasets/{file['id']}")

    async def _upload(self, columns: Columns, show: Any) -> Json:
        """Convert twice: for the size, and for the content; neither copy is kept in memory or on disk."""
        total = await asyncio.to_thread(lambda: sum(map(len, self._lines(columns))))
        if not total:
            raise TableError("No row has both a question and an answer. Choose other columns.")
        api = self.api
        upload = await create_upload(api, f"{PurePath(self._table.filename).stem[:200]}.jsonl", total)
        try:
            lines, offset = self._lines(columns), 0
            while offset < total:
                piece = await asyncio.to_thread(_next_piece, lines)
                is_last = offset + len(piece) == total
                show("Checking every line ..." if is_last else f"Uploading: {size(offset)} of {size(total)}")
                upload = await send_piece(api, upload, offset, piece)
                offset += len(piece)
        except ApiError:
            with suppress(ApiError):  # it expires within an hour
                await api.post(f"uploads/{upload['id']}/cancel")
            raise
        return dict(upload["file"])

    def _lines(self, columns: Columns) -> Iterator[bytes]:
        return map(json_line, self._table.examples(columns))


def _next_piece(lines: Iterator[bytes]) -> bytes:
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= PIECE_BYTES:
            break
    return bytes(piece)


def _guess(names: list[str], likely: tuple[str, ...], default: str) -> str:
    return next((name for one in likely for name in names if name.strip().lower() == one), default)
