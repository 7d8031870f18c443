"""Waiting for something that a worker does, such as an export."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.cli.errors import CliError
from app.cli.output.console import print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

POLL_SECONDS = 1.0


def poll(
    client: Client,
    path: str,
    row: Json,
    is_unfinished: Callable[[Json], bool],
    note: Callable[[Json], str] = lambda _: "",
) -> Json:
    """Request the object at `path` until it has ended; print what `note` returns whenever that has changed."""
    shown = ""
    while is_unfinished(row):
        if (text := note(row)) not in ("", shown):
            print_note(text)
            shown = text
        time.sleep(POLL_SECONDS)
        row = client.get(path)
    return row


def wait(client: Client, path: str, row: Json, note: Callable[[Json], str]) -> Json:
    """Poll an export or an evaluation until it has succeeded. Raises CliError if it has failed or was cancelled."""
    is_unfinished = ("queued", "running").__contains__
    if is_unfinished(row["status"]):
        print_note(f"{row['id']} is {row['status']}; Ctrl-C stops waiting and does not cancel it.")
    row = poll(client, path, row, lambda each: is_unfinished(each["status"]), note)
    if row["status"] == "succeeded":
        return row
    if row["status"] == "failed":
        raise CliError(f"{row['id']} failed ({row['error']['code']}): {row['error']['message']}")
    raise CliError(f"{row['id']} was {row['status']}.")
