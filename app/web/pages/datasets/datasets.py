"""The list of datasets, with an area for drag and drop."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from app.web.components.data_table import DataTable, column
from app.web.components.elements import Dropzone, button, card, link, note, tag
from app.web.formatting import age, clean, count, counted, moment, size
from app.web.frame import View, screen

PAGE_FILES = 100
COLUMNS = (
    column("name", "Dataset", lead=True),
    column("lines", "Lines", "number"),
    column("size", "Size", "number"),
    column("created", "Uploaded", "number"),
)
USE_COLUMN = column("use", "Use")
HINT = (
    "JSONL (one example per line) or CSV (one row per example; you choose the columns). Several files at once are "
    "possible; an interrupted upload continues when you drop the file again."
)

Json = dict[str, Any]


@screen("/datasets", "Datasets", "datasets")
async def build(view: View) -> None:
    with tag("div", classes="t-title"):
        tag("h1", "Datasets")
    if view.may("files:write"):
        with card():
            Dropzone("Choose files", HINT, ".jsonl,.json,.csv,.tsv,.txt", ui.navigate.to)
    after = view.query("after")
    page = await view.api.get("files", purpose="fine-tune", limit=PAGE_FILES, after=after or None)
    if not page["data"]:
        what_to_do = "Upload one above: the page then shows what is wrong with it, line by line."
        note("No datasets yet", what_to_do if view.may("files:write") else "This key may not upload any.")
        return
    columns = (*COLUMNS, USE_COLUMN) if view.may("jobs:write") else COLUMNS
    DataTable("Datasets", columns, [_row(file) for file in page["data"]])
    with tag("div", classes="t-row"):
        tag("span", f"{counted(len(page['data']), 'file')} shown", "t-muted")
        if page["has_more"]:
            link("Next page", f"/datasets?after={page['data'][-1]['id']}", "t-button")
        if after:
            button("First page", lambda: ui.navigate.to("/datasets"))


def _row(file: Json) -> Json:
    return {
        "id": file["id"],
        "label": clean(file["filename"], 80),
        "name": {"text": clean(file["filename"], 120), "href": f"/datasets/{file['id']}", "sub": file["id"]},
        "lines": count(file["line_count"]),
        "size": size(file["bytes"]),
        "created": {"text": age(file["created_at"]), "title": moment(file["created_at"])},
        "use": {"text": "New job", "href": f"/jobs/new?file={file['id']}"},
    }
