"""Pages by OpenAI's cursor: `after` is the last id of the previous page; a `limit` above the maximum is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from app.services.resources import Page

MAX_ITEMS = 100

Row = TypeVar("Row")
Limit = Annotated[
    int, Query(ge=1, description="How many items to return; a number above the maximum means the maximum.")
]
After = Annotated[str | None, Query(description="The id of the last item of the previous page.")]


async def read_page(after: After = None, limit: Limit = 20) -> Page:
    return Page(min(limit, MAX_ITEMS) + 1, after)


PageDep = Annotated[Page, Depends(read_page)]


def list_page(rows: Sequence[Row], limit: int, render: Callable[[Row], dict[str, Any]] | None = None) -> dict[str, Any]:
    """The list object of a page. `rows` were fetched with `limit + 1`: one row more means that `has_more` is true.

    Without `render` the response model reads the rows.
    """
    page: Sequence[Any] = rows[:limit] if render is None else [render(row) for row in rows[:limit]]
    ids = [row["id"] if isinstance(row, dict) else row.id for row in (*page[:1], *page[-1:])]
    return {
        "object": "list",
        "data": page,
        "has_more": len(rows) > limit,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }
