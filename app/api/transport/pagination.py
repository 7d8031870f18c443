"""Pages by OpenAI's cursor: `after` is the last id of the previous page; a `limit` above the maximum is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query

from app.services.resources import Page

MAX_ITEMS = 100

Limit = Annotated[
    int, Query(ge=1, description="How many items to return; a number above the maximum means the maximum.")
]
After = Annotated[str | None, Query(description="The id of the last item of the previous page.")]


def paged(default: int = 20, maximum: int = MAX_ITEMS) -> Any:
    """The dependency of a list that has `default` items, and at most `maximum`."""

    async def read_page(after: After = None, limit: Limit = default) -> Page:
        return Page(min(limit, maximum) + 1, after)

    return Depends(read_page)


PageDep = Annotated[Page, paged()]


def list_page(rows: Sequence[Any], limit: int) -> dict[str, Any]:
    """The list object of a page. `rows` were fetched with `limit + 1`: one row more means that `has_more` is true."""
    page = rows[:limit]
    ids = [row["id"] if isinstance(row, dict) else row.id for row in (*page[:1], *page[-1:])]
    return {
        "object": "list",
        "data": page,
        "has_more": len(rows) > limit,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }
