"""What a column shows of an object."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.components.data_table import TableColumn, lead_column, number_column, state, text_column

OBJECT: dict[str, Any] = {
    "id": "file-1",
    "name": "tickets\u202e",
    "usage": {"bytes": 5},
    "error": None,
    "scopes": ["jobs:read", "files:read"],
    "status": "running",
}


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        (text_column("Name", "name"), "tickets\\u202e"),
        (text_column("Scopes", "scopes"), "jobs:read, files:read"),
        (text_column("Cause", "error.message"), "–"),
        (text_column("Missing", "missing"), "–"),
        (number_column("Size", "usage.bytes", "{} B".format), "5 B"),
        (text_column("Status", "status", state({"running": "run"})), {"text": "running", "tone": "run"}),
        (lead_column("Name", "name", sub="id"), {"text": "tickets\\u202e", "sub": "file-1"}),
        (text_column("All", "", len), len(OBJECT)),
    ],
)
def test_a_cell_has_the_value_at_its_path(column: TableColumn, cell: Any) -> None:
    assert column.cell(OBJECT) == cell
