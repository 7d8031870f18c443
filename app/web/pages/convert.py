"""A dropped table, or JSON lines to split: choose columns and held-out rows, see the chats, then train."""

from __future__ import annotations

import asyncio
import functools

from nicegui import ui

from app.domain.datasets.held_out import MAX_PERCENT, MAX_SEED
from app.domain.datasets.jsonl import MAX_LINE_BYTES
from app.domain.datasets.preparation import Preparation, PreparedRows, whole_number
from app.domain.datasets.tables import Columns, TableError
from app.domain.error_text.json_text import counted
from app.system.table_files import Preview, preview_file, read_seconds
from app.web.api_client import ApiError
from app.web.components.elements import box, busy, button, card, error_note, facts, link, note, refilled, tag
from app.web.components.forms import Field, checkbox, select_field, text_field
from app.web.dropped_tables import EXPIRED, DroppedTableError
from app.web.formatting import size
from app.web.frame import View, screen
from app.web.pages.chat_rows import show_row
from app.web.pages.dataset_report import show_labels

MAX_LISTED_COLUMNS = 500  # a select with more is slow; any column can be typed
DEFAULT_PERCENT = "10"
PREVIEWS = asyncio.Semaphore(2)  # each is a process
HEADER_LABEL = "The first row has the names of the columns"
SPLIT_HELP = (
    "Rows that are not trained. The job measures the loss on them, and afterwards compares base model and adapter on "
    f"them. 1 to {MAX_PERCENT} %, or empty for none; rows with the same input stay together."
)


@screen("/datasets/convert/{table_id}", "New dataset")
class ConvertPage(View):
    async def build(self) -> None:
        tag("h1", "New dataset")
        try:
            self._table = self.tables.get(self.session.token, self.path("table_id"))
            found = await self._preview(None, None)
        except (DroppedTableError, TableError) as error:
            self._show_unusable(error)
            return
        self._is_table = bool(found.names)
        about = f", {counted(len(found.names), 'column')}" if self._is_table else ""
        tag("p", f"{self._table.filename}: {size(self._table.size_bytes)}{about}.", "t-lede")
        if self._is_table:
            with card("Columns"):
                text = "Each row becomes a chat: the user's message, and the assistant's answer that the model learns. "
                tag("p", text + "For a classification the answer is the label.", "t-lede")
                self._header = checkbox(HEADER_LABEL, "true" if found.has_header else "", self._change_header)
                self._columns_box = box("t-grid")
                self._show_columns(found)
        with card("Rows for validation"), box("t-grid"):
            self._percent = text_field(
                "Keep for validation (%)", DEFAULT_PERCENT, SPLIT_HELP, self._show_preview, "number"
            )
            self._seed = text_field(
                "Seed", "0", "The same file, share and seed give the same rows.", self._show_preview, "number"
            )
        with card("Preview"):
            self._shown = box("t-stack", aria_live="polite")
        with box("t-actions"):
            if self.may("jobs:write"):
                button("Train", functools.partial(self._upload, True), "t-primary")
            button("Upload only", functools.partial(self._upload, False), "" if self.may("jobs:write") else "t-primary")
            link("Cancel", "/datasets", "t-button")
        self._result = tag("div")
        ui.timer(0.05, self._show_preview, once=True)

    def _show_unusable(self, error: Exception) -> None:
        error_note(ApiError(str(error), 400), "The file cannot be read")
        link("Datasets", "/datasets", "t-button")

    def _show_columns(self, found: Preview) -> None:
        self._names, guessed = found.names, found.columns
        with refilled(self._columns_box):
            self._user = self._column_field("User (question)", guessed.input if guessed else "")
            self._assistant = self._column_field("Assistant (answer)", guessed.output if guessed else "")
            self._system = self._column_field("System prompt (optional)", "", "None")

    def _column_field(self, label: str, value: str, nothing: str = "Choose a column") -> Field:
        """A select, or a text field where a select would be slow."""
        if len(self._names) > MAX_LISTED_COLUMNS:
            return text_field(label, value, "The name of a column.", self._show_preview)
        options = {"": nothing} | {name: name for name in self._names if name}
        return select_field(label, options, value, on_change=self._show_preview)

    async def _change_header(self) -> None:
        self._show_columns(await self._preview(None, bool(self._header.value)))
        await self._show_preview()

    async def _preview(self, preparation: Preparation | None, has_header: bool | None) -> Preview:
        """Without a preparation only the columns are read. Raises TableError, DroppedTableError."""
        path = self._table.path

        def read() -> Preview:
            with path.open("rb") as file:
                return preview_file(file, preparation, has_header, MAX_LINE_BYTES)

        async with PREVIEWS:
            try:
                return await asyncio.to_thread(read)
            except FileNotFoundError:  # uploaded in another tab, or older than an hour
                raise DroppedTableError(EXPIRED) from None

    def _preparation(self, is_marked: bool = True) -> Preparation | None:
        """What was chosen; None, with errors at the fields if `is_marked`, if it cannot be used."""
        errors = {self._percent: _number_error(self._percent, 1, MAX_PERCENT)} if self._percent.value else {}
        errors[self._seed] = _number_error(self._seed, 0, MAX_SEED)
        if self._is_table:
            errors |= {field: self._column_error(field) for field in (self._user, self._assistant, self._system)}
        for field, error in errors.items():
            field.set_error(error if is_marked else "")
        if any(errors.values()):
            return None
        names = (self._user.value, self._assistant.value, self._system.value or None) if self._is_table else None
        percent = int(self._percent.value) if self._percent.value else None
        return Preparation(Columns(*names) if names else None, percent, int(self._seed.value))

    def _column_error(self, field: Field) -> str:
        if not field.value:
            return "" if field is self._system else "Choose a column."
        if field.value not in self._names:
            return "There is no column with this name."
        is_twice = field is self._assistant and field.value == self._user.value
        return "The question and the answer are the same column. Choose two." if is_twice else ""

    async def _show_preview(self) -> None:
        is_marked = not self._is_table or bool(self._user.value and self._assistant.value)
        preparation = self._preparation(is_marked)
        with refilled(self._shown):
            if preparation is None:
                tag("p", "The first rows appear when the fields are complete.", "t-muted")
                return
            waiting = busy("Reading the file ...")
        problem: Exception | None = None
        try:
            found = await self._preview(preparation, None)
        except (DroppedTableError, TableError) as error:
            problem = error
        if waiting.is_deleted:  # a later choice has its own preview
            return
        with refilled(self._shown):
            if problem is not None or found.problem:
                error_note(ApiError(str(problem or found.problem), 400), "The file has a problem")
            if problem is None and found.prepared is not None:
                _show_prepared(found.prepared)
            for number, example in enumerate(found.examples if problem is None else (), start=1):
                show_row(f"Example {number}", example)

    async def _upload(self, is_training: bool) -> None:
        preparation = self._preparation()
        if preparation is None:
            return
        with refilled(self._result):
            busy("Uploading; every row is checked ...")
        try:
            fields = {"purpose": "fine-tune"} | preparation.form_fields()
            seconds = 30 + 2 * read_seconds(self._table.size_bytes)
            file = await self.api.upload(self._table.path, self._table.filename, fields, seconds)
        finally:
            self._result.clear()
        self.tables.discard(self._table)
        ui.navigate.to(f"/jobs/new?file={file['id']}" if is_training else f"/datasets/{file['id']}")


def _number_error(field: Field, low: int, high: int) -> str:
    is_number = whole_number(field.value, low, high) is not None
    return "" if is_number else f"Write a whole number from {low} to {high:,}."


def _show_prepared(prepared: PreparedRows) -> None:
    shown = {"Rows": prepared.rows, "For training": prepared.rows - prepared.held_out_rows}
    shown |= {"For validation": prepared.held_out_rows}
    if prepared.skipped_rows:
        shown["Left out, without question or answer"] = prepared.skipped_rows
    facts({name: f"{number:,}" for name, number in shown.items()})
    if not prepared.held_out_rows:
        note("No rows are kept for validation", "Nothing will show how good the adapter is on new rows.", "warn")
    show_labels(prepared.labels)
