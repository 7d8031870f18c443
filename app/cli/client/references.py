"""Ids as people type them: whole, the beginning of exactly one, or @last for the newest.

A parameter that is annotated with `JOB` or `FILE` gets the whole id before its command runs (`app.cli.options`).
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.client.service_discovery import ID
from app.cli.errors import Missing, UsageError

if TYPE_CHECKING:
    from app.cli.client.http import Client

LAST = "@last"
WHOLE = re.compile(r"(ftjob|file)-[0-9a-f]{24}")
MAX_CANDIDATES = 5  # named in the error about an ambiguous beginning


class Kind(NamedTuple):
    noun: str
    prefix: str
    path: str
    page_size: int


JOB = Kind("job", "ftjob-", "fine_tuning/jobs", 100)
FILE = Kind("file", "file-", "files", 1000)

HOW = "its id, the beginning of it, or @last"
JobId = Annotated[str, typer.Argument(help=f"The job: {HOW}.", metavar="JOB"), JOB]
FileId = Annotated[str, typer.Argument(help=f"The file: {HOW}.", metavar="FILE"), FILE]
FileIds = Annotated[list[str], typer.Argument(help=f"The files, each by {HOW}.", metavar="FILE..."), FILE]


def find_id(client: Client, kind: Kind, text: str, **filters: Any) -> str:
    """The whole id that `text` stands for. Raises Missing for none, UsageError for several."""
    if text == LAST:
        return _newest(client, kind, filters)
    if WHOLE.fullmatch(text) or not ID.fullmatch(text):
        return text  # what can be no id is refused where it would become part of a path
    beginning = text if text.startswith(kind.prefix) else kind.prefix + text
    every = (str(one["id"]) for one in client.pages(kind.path, kind.page_size, **filters))
    found = list(islice((one for one in every if one.startswith(beginning)), MAX_CANDIDATES + 1))
    if not found:
        raise Missing(f"No {kind.noun}'s id begins with {text!r}; `tunery {kind.noun}s list` has them.")
    if len(found) > 1:
        more = " and others" if len(found) > MAX_CANDIDATES else ""
        named = ", ".join(found[:MAX_CANDIDATES])
        raise UsageError(
            f"{text!r} is the beginning of several {kind.noun}s: {named}{more}. Type more of the one meant."
        )
    return found[0]


def _newest(client: Client, kind: Kind, filters: dict[str, Any]) -> str:
    newest = client.get(kind.path, limit=1, **filters)["data"]
    if not newest:
        raise Missing(f"{LAST} is the newest {kind.noun}, and there is none yet.")
    return str(newest[0]["id"])
