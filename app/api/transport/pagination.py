"""Pages by OpenAI's cursor: `after` is the last id of the previous page; a `limit` above the maximum is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

Row = TypeVar("Row")
Limit = Annotated[
    int, Query(ge=1, description="How many items to return; a number above the maximum means the maximum.")
]
After = Annotated[str | None, Query(description="The id of the last item of the previous page.")]


def list_page(rows: Sequence[Row], limit: int, render: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """The list object of a page. `rows` were fetched with `limit + 1`: one row more means that `has_more` is true."""
    data = [render(row) for row in rows[:limit]]
    return {
        "object": "list",
        "data": data,
        "has_more": len(rows) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
