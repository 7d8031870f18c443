"""Waiting for something that a worker does, such as an export."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.cli.errors import CliError
from app.cli.output.console import PRINT_INTERVAL_SECONDS, print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

POLL_SECONDS = 1.0
DIGITS = re.compile(r"\d+")


def poll(
    client: Client,
    path: str,
    row: Json,
    is_unfinished: Callable[[Json], bool],
    note: Callable[[Json], str] = lambda _: "",
) -> Json:
    """Request the object at `path` until it has ended; print what `note` returns whenever that has changed.

    If only numbers have changed, such as the time that is left, it is printed every PRINT_INTERVAL_SECONDS.
    """
    shown, printed_at = "", 0.0
    while is_unfinished(row):
        now, text = time.monotonic(), note(row)
        is_due = now - printed_at >= PRINT_INTERVAL_SECONDS or DIGITS.sub("", text) != DIGITS.sub("", shown)
        if text not in ("", shown) and is_due:
            print_note(text)
            shown, printed_at = text, now
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
