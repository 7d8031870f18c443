"""Messages for unknown names in a request: the most similar name, and all that are known."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache

from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, as_json, unquoted
from app.errors import UnknownParameter

MAX_SUGGESTIONS = 10  # in one request: a body may have a hundred thousand unknown keys
MAX_NAME_CHARACTERS = 60  # the time of the search grows with the square of the length


def suggestion(name: str, known: Sequence[str]) -> str:
    """The known name that is most similar, as a question in brackets; empty if none is similar."""
    similar = get_close_matches(name[:MAX_NAME_CHARACTERS], known, n=1)
    return f" (did you mean {as_json(similar[0])}?)" if similar else ""


def unknown_parameter(path: str, known: tuple[str, ...], earlier_problems: int) -> UnknownParameter:
    """The error for the key at a dotted path; after MAX_SUGGESTIONS problems without a similar name."""
    where = unquoted(path, MAX_PATH_CHARACTERS)
    similar = suggestion(where.rpartition(".")[2], known) if earlier_problems < MAX_SUGGESTIONS else ""
    return UnknownParameter(f"unknown parameter {where}{similar}; known here: {_listed(known)}", where)


@cache
def _listed(names: tuple[str, ...]) -> str:
    """Cached, as it is the same for all unknown keys of an object."""
    return ", ".join(sorted(set(names)))
