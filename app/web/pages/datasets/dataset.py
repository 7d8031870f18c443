"""One dataset: the report with warnings and line numbers, rows as a chat and as the model sees them, lengths."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from nicegui import ui

from app.web.api_client import ApiError
from app.web.components.data_table import DataTable, column
from app.web.components.elements import TokenView, busy, button, card, facts, link, note, tag
from app.web.components.forms import select_field, text_field
from app.web.formatting import clean, count, counted, moment, size
from app.web.frame import View, error_note, screen, set_query
from app.web.models import base_model_names
from app.web.pages.datasets.chat_rows import show_line, show_rows
from app.web.pages.datasets.length_histogram import length_histogram

REPORT_SECONDS = 120.0
PREVIEW_ROWS = 5
MAX_FILES = 100
MAX_LINES = 20  # of a warning
LINE_NUMBER = re.compile("[1-9][0-9]{0,11}")

Json = dict[str, Any]
OpenLine = Callable[[int], Awaitable[None]]


@screen("/datasets/{file_id}", "Dataset", "datasets")
async def build(view: View) -> None:
    await DatasetPage(view, view.path("file_id")).build()


class DatasetPage:
    def __init__(self, view: View, file_id: str) -> None:
        self._view = view
        self._file_id = file_id
        self._requested = 0  # the number of the latest request of a report

    async def build(self) -> None:
        file = await self._view.api.get(f"files/{self._file_id}")
        ui.page_title(f"{clean(file['filename'], 60)} · Tunery")
        with tag("div", classes="t-title"):
            with tag("h1"):
                tag("bdi", clean(file["filename"], 120))
            with tag("div", classes="t-actions"):
                link("Download", f"/files/{self._file_id}/content", "t-button", download="")
                if self._view.may("jobs:write"):
                    link("New job", f"/jobs/new?file={self._file_id}", "t-button t-primary")
        with card():
            facts(
                {
                    "Lines": count(file["line_count"]),
                    "Size": size(file["bytes"]),
                    "Uploaded": moment(file["created_at"]),
                }
            )
            for label, value in (("Id", file["id"]), ("SHA-256", file["sha256"])):
                with tag("div", classes="t-row t-muted"):
                    tag("span", label)
                    tag("span", value, "t-mono t-wrap")
        await self._build_choices()
        self._report = tag("div", classes="t-stack")
        ui.timer(0.05, self._load_report, once=True)  # after the page is shown: a large file takes a while
        with card("Rows as chats") as rows:
            self._opened = tag("div", tabindex="-1")
            await show_rows(self._view.api, self._file_id, rows)
        if LINE_NUMBER.fullmatch(line := self._view.query("line")):
            ui.timer(0.05, lambda: self._open_line(int(line)), once=True)

    async def _build_choices(self) -> None:
        models = await base_model_names(self._view.api)
        others = await self._view.api.items("files", MAX_FILES, purpose="fine-tune")
        files = {"": "None"} | {one["id"]: clean(one["filename"], 60) for one in others if one["id"] != self._file_id}
        with card("Check for"), tag("div", classes="t-grid"):
            names = {name: clean(name, 80) for name in models} or {"": "No base model is registered"}
            chosen = self._view.query("model", next(iter(names)))
            self._model = select_field(
                "Base model", names, chosen, "Its tokenizer and chat template are used.", self._change
            )
            self._validation = select_field(
                "Validation file", files, "", "Rows in both files are listed.", self._change
            )
            self._context = text_field(
                "Context length (tokens)", self._view.query("context"), "Default: the model's.", self._change, "number"
            )

    async def _change(self) -> None:
        self._set_query()
        await self._load_report()

    async def _open_line(self, number: int) -> None:
        self._set_query(line=str(number))
        await show_line(self._view.api, self._file_id, number, self._opened)

    def _set_query(self, line: str = "") -> None:
        set_query(f"/datasets/{self._file_id}", model=self._model.value, context=self._context.value, line=line)

    async def _load_report(self) -> None:
        self._requested += 1
        number = self._requested
        self._report.clear()
        if not self._model.value:
            with self._report:
                note("No base model", "An operator registers one: tunery models add NAME DIRECTORY", "warn")
            return
        with self._report:
            busy("Checking the file ...")
        report: Json | ApiError
        try:
            report = await self._view.api.post(
                f"files/{self._file_id}/validate",
                model=self._model.value,
                validation_file=self._validation.value or None,
                context_length=self._context.value or None,
                rows=PREVIEW_ROWS,
                timeout_seconds=REPORT_SECONDS,
            )
        except ApiError as error:
            report = error
        if number != self._requested:  # a later choice has its own report
            return
        self._report.clear()
        with self._report:
            if isinstance(report, ApiError):
                error_note(report, "The file cannot be checked")
                if report.is_unreachable:
                    button("Check again", self._load_report)
            else:
                _show_report(report, self._open_line)


def _show_report(report: Json, open_line: OpenLine) -> None:
    is_complete, message = report["coverage"]["complete"], report["message"].removeprefix("Valid: ")
    valid = "Valid" if is_complete else "Valid as far as it was checked"
    with note(
        valid if report["valid"] else "Not usable for training",
        clean(message[:1].upper() + message[1:], 2_000),
        ("ok" if is_complete else "warn") if report["valid"] else "bad",
    ):
        if report["findings"]["data"]:
            tag("p", "Correct the lines below in your file, then upload it again: a stored file is not changed.")
            link("Upload the corrected file", "/datasets", "t-button")
    for warning in report["warnings"]:
        _show_warning(warning, open_line)
    if report["findings"]["data"]:
        _show_findings(report["findings"], open_line)
    tokens = report["tokens"]
    if tokens["lengths"]:
        _show_lengths(report)
    with card("As the model sees it"):
        _legend()
        for row in report["rows"]:
            _show_row(row)
        if not report["rows"]:
            tag("p", "No row can be shown.", "t-muted")


def _show_warning(warning: Json, open_line: OpenLine) -> None:
    lines = warning.get("lines") or warning.get("first_lines") or []
    with note(clean(warning["message"], 1_000), tone="warn"):
        if isinstance(lines, list) and lines:
            with tag("div", classes="t-row"):
                tag("span", "Lines")
                for line in lines[:MAX_LINES]:
                    show = button(f"{line:,}", partial(open_line, line), "t-small-button")
                    show.props["aria-label"] = f"Show the row of line {line:,}"


def _show_findings(findings: Json, open_line: OpenLine) -> None:
    show = [{"name": "show", "label": "Show row"}]
    with card(f"{counted(findings['count'], 'finding')} in {counted(findings['lines'], 'line')}"):
        rows = [
            {
                "id": str(number),
                "label": f"of line {one['line']:,}",
                "line": {"text": f"{one['line']:,}", "buttons": show},
                "message": clean(one["message"], 600),
            }
            for number, one in enumerate(findings["data"])
        ]
        columns = (column("line", "Line", "number"), column("message", "Problem", lead=True))
        table = DataTable("Findings", columns, rows)
        table.on_press(lambda number, _: open_line(findings["data"][int(number)]["line"]))


def _show_lengths(report: Json) -> None:
    with card("Lengths"):
        facts(length_facts(report))
        length_histogram(report["tokens"]["histogram"], report["context_length"])


def length_facts(report: Json) -> dict[str, str]:
    """Of a large file, a part of the rows is tokenized, and a part is read if that takes long: the names say so."""
    tokens, lengths, coverage = report["tokens"], report["tokens"]["lengths"], report["coverage"]
    tokenized, cut = coverage["tokenized_rows"], report["cut"]["count"]
    is_whole = coverage["complete"] and tokenized == coverage["rows"]
    trained_percent = 100 * tokens["trained"] / max(tokens["total"], 1)
    return {
        "Rows" if coverage["complete"] else "Rows read": count(coverage["rows"]),
        "Tokens per epoch" if is_whole else f"Tokens of {counted(tokenized, 'row')}": count(tokens["total"]),
        "Learned tokens": f"{count(tokens['trained'])} ({trained_percent:.0f} %)",
        "Median": f"{count(lengths['median'])} tokens",
        "99th percentile": f"{count(lengths['p99'])} tokens",
        "Longest": f"{count(lengths['max'])} tokens",
        "Truncated": f"{counted(cut, 'row')} ({100 * cut / max(tokenized, 1):.1f} %)",
        "Duplicates": counted(report["duplicates"]["rows"], "row"),
    }


def _legend() -> None:
    with tag("div", classes="t-row t-hint"):
        tag("mark", "learned tokens")
        tag("span", "masked tokens", "t-muted")
        tag("span", "special tokens", "t-special")
        tag("s", "truncated", "t-cut")


def _show_row(row: Json) -> None:
    for document in row["documents"]:
        side = {"preferred": " · preferred answer", "non_preferred": " · other answer"}.get(document["side"], "")
        with tag("div", classes="t-stack"):
            tokens = f"{count(document['tokens'])} tokens, {count(document['trained_tokens'])} learned"
            cut = f", {count(row['cut_tokens'])} truncated" if row["cut_tokens"] else ""
            tag("div", f"Line {row['line']:,}{side}: {tokens}{cut}", "t-label")
            truncated = [{**segment, "cut": True} for segment in document["truncated_segments"]]
            TokenView([*document["segments"], *([] if document["omitted_tokens"] else truncated)])
            if document["omitted_tokens"]:
                tag("div", f"… {counted(document['omitted_tokens'], 'more token')} not shown", "t-hint")
