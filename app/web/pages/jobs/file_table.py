"""Files of a model as rows of a table, with their downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.web.components.data_table import Row, column
from app.web.formatting import clean, size

FILE_COLUMNS = (
    column("name", "File", lead=True),
    column("size", "Size", "number"),
    column("sha256", "SHA-256", "wide"),
)


def file_rows(files: Sequence[dict[str, Any]]) -> list[Row]:
    return [
        {
            "id": file["id"],
            "name": {"text": clean(file["filename"], 120), "href": f"/files/{file['id']}/content", "download": ""},
            "size": size(file["bytes"]),
            "sha256": file["sha256"],
        }
        for file in files
    ]
