"""The local files that a request refers to: found among the stored ones, or uploaded."""

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
from app.domain.files.uploads import EXPIRES_SECONDS
from app.system.artifact_directory import sha256_file

if TYPE_CHECKING:
    from app.cli.client.http import Client

FILE_PARAMETERS = ("training_file", "validation_file")
PURPOSE = "fine-tune"
TEMPORARY = {"anchor": "created_at", "seconds": EXPIRES_SECONDS[0]}


def is_path(value: str | None) -> bool:
    """Whether `value` is a local path and not a file id. Raises UsageError if it is neither."""
    if value is None or value == LAST or value.startswith(FILE.prefix):
        return False
    if not Path(value).exists():
        raise UsageError(f"{value} is neither a file id ({FILE.prefix}...), nor an existing path, nor {LAST}.")
    return True


@contextmanager
def uploaded_files(client: Client, body: dict[str, Any], keep: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a request body with file ids in place of its local files; the block sends it.

    A stored file with the same SHA-256 is used, any other one is uploaded. Without `keep` the uploaded files are
    deleted afterwards, and expire by themselves if this process is killed. They are also deleted if the block fails,
    except after a lost connection, when the server may have processed the request.
    """
    values = {name: body[name] for name in FILE_PARAMETERS if body.get(name)}
    paths = {name: Path(value) for name, value in values.items() if is_path(value)}
    ids = {
        name: resolve_id(client, FILE, value, purpose=PURPOSE) for name, value in values.items() if name not in paths
    }
    uploaded_ids: list[str] = []
    is_kept = False
    try:
        for name, path in paths.items():
            stored_id = _find_stored(client, path)
            if stored_id is None:
                uploaded = files.upload_with_progress(client, path, expires_after=None if keep else TEMPORARY)
                uploaded_ids.append(str(uploaded["id"]))
            ids[name] = stored_id or uploaded_ids[-1]
        yield body | ids
        is_kept = keep
    except ServiceUnreachable:
        is_kept = keep and len(ids) == len(values)
        if is_kept and uploaded_ids:
            kept = ", ".join(uploaded_ids)
            print_note(f"The server may have processed the request, so the uploaded files are kept: {kept}.")
        raise
    finally:
        if not is_kept:
            _delete_uploaded(client, uploaded_ids)


def _find_stored(client: Client, path: Path) -> str | None:
    """The newest stored training file with the bytes of `path`, which does not expire. Raises UsageError."""
    files.require_readable(path)
    sha256 = sha256_file(path)
    for file in client.pages(FILE.path, FILE.page_size, purpose=PURPOSE):
        if file["sha256"] == sha256 and file["expires_at"] is None:
            print_note(f"Uses the stored file {file['id']}, which has the SHA-256 of {path}, without an upload.")
            return str(file["id"])
    return None


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
