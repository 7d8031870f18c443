"""Files of a request that are paths here: uploaded for it, and deleted again where it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.client.references import FILE, LAST, find_id
from app.cli.client.service_discovery import file_path
from app.cli.commands import files
from app.cli.errors import CliError, Unreachable, UsageError
from app.cli.output.console import print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client

NAMES = ("training_file", "validation_file")
PURPOSE = "fine-tune"


def is_path(value: str | None) -> bool:
    """Whether it names a file here, not an id. Raises UsageError for what is neither."""
    if value is None or value == LAST or value.startswith(FILE.prefix):
        return False
    if not Path(value).exists():
        raise UsageError(
            f"{value} is neither a file's id, which begins with {FILE.prefix}, nor a path that exists here, nor {LAST}."
        )
    return True


@contextmanager
def uploaded(client: Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The body of a request with ids in place of paths; send it inside of the block.

    What was uploaded for it is deleted when the block fails, unless nobody knows whether the request was carried out.
    """
    given = {name: body[name] for name in NAMES if body.get(name)}
    paths = {name: Path(value) for name, value in given.items() if is_path(value)}
    ids = {name: find_id(client, FILE, value, purpose=PURPOSE) for name, value in given.items() if name not in paths}
    sent: dict[str, str] = {}
    is_ready = False
    try:
        for name, path in paths.items():
            sent[name] = str(files.send(client, path)["id"])
        is_ready = True
        yield body | ids | sent
    except Unreachable:
        if is_ready and sent:
            print_note(f"Whether it was carried out is not known, so these files stay: {', '.join(sent.values())}.")
        else:
            delete_again(client, list(sent.values()))
        raise
    except BaseException:
        delete_again(client, list(sent.values()))
        raise


def delete_again(client: Client, file_ids: Sequence[str]) -> None:
    """Delete files that the command itself has uploaded, and say so."""
    for file_id in file_ids:
        try:
            client.delete(file_path(file_id))
        except CliError as error:
            print_note(f"{file_id} was uploaded and stays: {error} `tunery files delete {file_id}` deletes it.")
        else:
            print_note(f"Deleted {file_id} again, which was uploaded for this.")
