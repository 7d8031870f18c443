"""OpenAI's cursor pages: `after` is the id of the last item seen, exclusive; a limit above the cap is clamped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

Row = TypeVar("Row")
Limit = Annotated[
    int, Query(ge=1, description="How many items to return; a number above the maximum means the maximum.")
]
After = Annotated[str | None, Query(description="The id of the last item of the page before.")]


def envelope(rows: Sequence[Row], limit: int, render: Callable[[Row], dict[str, Any]]) -> dict[str, Any]:
    """`rows` were fetched with a limit of one more than `limit`, which answers `has_more`."""
    data = [render(row) for row in rows[:limit]]
    return {
        "object": "list",
        "data": data,
        "has_more": len(rows) > limit,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
