"""The list of datasets with an area for drag and drop; one dataset: its report, and its rows as chats."""

from __future__ import annotations

import re
from functools import partial

from nicegui import ui

from app.web.api_client import ApiError, Json
from app.web.components.data_table import ago, lead_column, number_column, show_page, text_column
from app.web.components.elements import (
    Dropzone,
    box,
    busy,
    button,
    card,
    error_note,
    facts,
    folded,
    link,
    note,
    page_head,
    refilled,
    tag,
)
from app.web.components.forms import select_field, text_field
from app.web.formatting import count, moment, size
from app.web.frame import View, screen, set_query
from app.web.pages.chat_rows import show_line, show_rows
from app.web.pages.dataset_report import show_labels, show_tokens, show_verdict
from app.web.pages.housekeeping import add_file_buttons
from app.web.pages.jobs import wording

REPORT_SECONDS = 120.0
PREVIEW_ROWS = 5
MAX_FILES = 100
LINE_NUMBER = re.compile("[1-9][0-9]{0,11}")
COLUMNS = (
    lead_column(
        "Dataset",
        "",
        lambda file: {
            "text": file["filename"],
            "href": f"/datasets/{file['id']}",
            "sub": file["id"] + wording.copies_text(file),
        },
    ),
    number_column("Lines", "line_count", count),
    number_column("Size", "bytes", size),
    number_column("Uploaded", "created_at", ago),
)
USE_COLUMN = text_column("Use", "id", lambda file_id: {"text": "New job", "href": f"/jobs/new?file={file_id}"})
SPLIT_LABEL = "Keep rows for validation"
HINT = (
    "JSONL (one example per line), or CSV, TSV, XLSX and Parquet (one row per example; you choose the columns). "
    "Several files at once are "
    "possible; an interrupted upload continues when you drop the file again."
)


@screen("/datasets", "Datasets")
class DatasetsPage(View):
    async def build(self) -> None:
        with box("t-title"):
            tag("h1", "Datasets")
        may_write = self.may("files:write")
        if may_write:
            with card():
                Dropzone(HINT, ui.navigate.to)
        columns = (*COLUMNS, USE_COLUMN) if self.may("jobs:write") else COLUMNS
        after = self.query("after")
        listed = ("/datasets", after, "Datasets", columns, "dataset", "files", wording.distinct_files)
        if not await show_page(self.api, *listed, purpose="fine-tune"):
            what_to_do = "Upload one above: the page then shows what is wrong with it, line by line."
            note("No datasets yet", what_to_do if may_write else "This key may not upload any.")


@screen("/datasets/{file_id}", "Dataset")
class DatasetPage(View):
    async def build(self) -> None:
        self._file_id = self.path("file_id")
        file = await self.api.get(f"files/{self._file_id}")
        dialogs = tag("div")
        with page_head(file["filename"]):
            link("Download", f"/files/{self._file_id}/content", "t-button", download="")
            if self.may("files:write") and not (file.get("held_out_file_id") or file.get("training_file_id")):
                button(SPLIT_LABEL, partial(self._split, file))
            if self.may("jobs:write"):
                link("Train", f"/jobs/new?file={self._file_id}", "t-button t-primary")
            if self.may("files:write"):
                add_file_buttons(self, file, dialogs)
        with card():
            facts(
                {
                    "Lines": count(file["line_count"]),
                    "Size": size(file["bytes"]),
                    "Uploaded": moment(file["created_at"]),
                }
            )
            _show_split(file)
            with folded("Id and SHA-256"):
                for value in (file["id"], file["sha256"]):
                    tag("span", value, "t-mono t-wrap")
        self._verdict = box("t-stack")
        with card("Rows as chats"):
            self._opened = tag("div", tabindex="-1")
            await show_rows(self.api, self._file_id)
        await self._build_choices(file)
        self._tokens = box("t-stack")
        ui.timer(0.05, self._load_report, once=True)  # after the page is shown: a large file takes a while
        if LINE_NUMBER.fullmatch(line := self.query("line")):
            ui.timer(0.05, lambda: self._open_line(int(line)), once=True)

    async def _split(self, file: Json) -> None:
        """Copy the file here, and open the page that splits it into two new files; this one stays."""
        table = self.tables.create(self.session.token, file["filename"], file["bytes"])
        try:
            async with self.api.stream("GET", f"files/{self._file_id}/content", read_seconds=20) as response:
                async for chunk in response.aiter_bytes():
                    table.append(chunk)
        except BaseException:
            self.tables.discard(table)
            raise
        ui.navigate.to(f"/datasets/convert/{table.id}")

    async def _build_choices(self, file: Json) -> None:
        models = await self.api.base_models()
        others = await self.api.items("files", MAX_FILES, purpose="fine-tune")
        others = [one for one in others if one["sha256"] != file["sha256"]]
        files = {"": "None"} | wording.file_options(others)
        with card("Check for a base model"), box("t-grid"):
            names = {model["id"]: model["id"] for model in models} or {"": "No base model is registered"}
            chosen = self.query("model", next(iter(names)))
            self._model = select_field(
                "Base model", names, chosen, "Its tokenizer and chat template are used.", self._change
            )
            self._validation = select_field(
                "Validation file", files, "", "Rows in both files are listed.", self._change
            )
            self._context = text_field(
                "Context length (tokens)", self.query("context"), "Default: the model's.", self._change, "number"
            )

    async def _change(self) -> None:
        self._set_query()
        await self._load_report()

    async def _open_line(self, number: int) -> None:
        self._set_query(line=str(number))
        await show_line(self.api, self._file_id, number, self._opened)

    def _set_query(self, line: str = "") -> None:
        set_query(f"/datasets/{self._file_id}", model=self._model.value, context=self._context.value, line=line)

    async def _load_report(self) -> None:
        with refilled(self._verdict):
            if not self._model.value:
                note("No base model", "An operator registers one: `tunery models add NAME DIRECTORY`", "warn")
                return
            waiting = busy("Checking the file ...")
        report: Json | ApiError
        try:
            report = await self.api.post(
                f"files/{self._file_id}/validate",
                model=self._model.value,
                validation_file=self._validation.value or None,
                context_length=self._context.value or None,
                rows=PREVIEW_ROWS,
                timeout_seconds=REPORT_SECONDS,
            )
        except ApiError as error:
            report = error
        if waiting.is_deleted:  # a later choice has its own report
            return
        with refilled(self._verdict):
            if isinstance(report, ApiError):
                error_note(report, "The file cannot be checked")
                if report.is_unreachable:
                    button("Check again", self._load_report)
            else:
                show_verdict(report, self._open_line)
        with refilled(self._tokens):
            if not isinstance(report, ApiError):
                show_tokens(report)


def _show_split(file: Json) -> None:
    """How the rows were split, with a link to the other file."""
    made = file.get("preparation")
    if made is None:
        return
    if made["held_out_percent"]:
        facts({"Held out": f"{made['held_out_rows']:,} of {made['rows']:,} rows", "Seed": str(made["seed"])})
    if held_out := file.get("held_out_file_id"):
        link("The rows kept for validation", f"/datasets/{held_out}")
    if training := file.get("training_file_id"):
        link("The rows for training", f"/datasets/{training}")
    show_labels(made["labels"])
