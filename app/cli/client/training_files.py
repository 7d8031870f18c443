"""Upload of the local files that a request refers to. They are deleted again if the request fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.client.references import FILE, LAST, resolve_id
from app.cli.client.service_discovery import file_path
from app.cli.commands.files import files
from app.cli.errors import CliError, ServiceUnreachable, UsageError
from app.cli.output.console import print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client

FILE_PARAMETERS = ("training_file", "validation_file")
PURPOSE = "fine-tune"


def is_path(value: str | None) -> bool:
    """Whether `value` is a local path and not a file id. Raises UsageError if it is neither."""
    if value is None or value == LAST or value.startswith(FILE.prefix):
        return False
    if not Path(value).exists():
        raise UsageError(f"{value} is neither a file id ({FILE.prefix}...), nor an existing path, nor {LAST}.")
    return True


@contextmanager
def uploaded_files(client: Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Upload the local files of a request body and yield it with their ids; the block sends it.

    If the block fails, the uploaded files are deleted, except after a lost connection, when the server may have
    processed the request.
    """
    values = {name: body[name] for name in FILE_PARAMETERS if body.get(name)}
    paths = {name: Path(value) for name, value in values.items() if is_path(value)}
    ids = {
        name: resolve_id(client, FILE, value, purpose=PURPOSE) for name, value in values.items() if name not in paths
    }
    uploaded_ids: dict[str, str] = {}
    is_uploaded = False
    try:
        for name, path in paths.items():
            uploaded_ids[name] = str(files.upload_with_progress(client, path)["id"])
        is_uploaded = True
        yield body | ids | uploaded_ids
    except ServiceUnreachable:
        if is_uploaded and uploaded_ids:
            kept = ", ".join(uploaded_ids.values())
            print_note(f"The server may have processed the request, so the uploaded files are kept: {kept}.")
        else:
            _delete_uploaded(client, list(uploaded_ids.values()))
        raise
    except BaseException:
        _delete_uploaded(client, list(uploaded_ids.values()))
        raise


def _delete_uploaded(client: Client, file_ids: Sequence[str]) -> None:
    """Delete files that the command has uploaded, and print a note for each."""
    for file_id in file_ids:
        try:
            client.delete(file_path(file_id))
        except CliError as error:
            print_note(
                f"Could not delete the uploaded file {file_id}: {error} Delete it with `tunery files delete {file_id}`."
            )
        else:
            print_note(f"Deleted the uploaded file {file_id}.")
