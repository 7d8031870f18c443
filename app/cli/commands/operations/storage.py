"""`tunery storage`: the place of files, adapters and snapshots, for operators."""

import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import CliError, UsageError
from app.cli.options import with_database
from app.cli.output.console import print_line, print_note, size_text
from app.cli.output.progress import bytes_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.client.database import Database
    from app.storage import Storage

commands = typer.Typer(no_args_is_help=True, help="Storage of files, adapters and snapshots (on the server).")

MAX_PROBLEMS = 20


@commands.callback()
def _group() -> None:
    """A group, although it has one command."""


@commands.command("copy")
@with_database
def copy(
    database: "Database",
    directory: Annotated[Path, typer.Argument(help="The directory to copy from: DATA-DIR/storage.")],
) -> None:
    """Copy every file, adapter and snapshot from a directory to the bucket (on the server), and verify each.

    The bucket is that of TUNERY_STORAGE_URL. Repeat the command to continue after an interruption. The directory is
    not changed. Copy while the service runs, stop it, copy the rest, and start it with TUNERY_STORAGE_URL.
    """
    from app.db.operations.stored_objects import named_objects
    from app.services.files.storage_copy import CopyLedger, copy_objects
    from app.storage import LocalStorage, StorageError

    if not (directory / "objects").is_dir():
        raise UsageError(f"{directory} has no directory `objects`; give the directory `storage` of a data directory.")
    with database.transaction() as session:
        objects = list({each.key: each for each in named_objects(session.connection())}.values())
    sizes: list[int] = []
    with _work_directory(directory) as work_directory:
        url, target = _target(work_directory)
        ledger = CopyLedger(work_directory / f"copied-to-{hashlib.sha256(url.encode()).hexdigest()[:8]}.txt")
        try:
            with bytes_bar("copying", sum(each.size_bytes or 0 for each in objects)) as advance:

                def on_copied(size_bytes: int) -> None:
                    sizes.append(size_bytes)
                    advance(size_bytes)

                problems = list(copy_objects(LocalStorage(directory), target, objects, ledger, on_copied))
        except StorageError as error:
            raise CliError(
                f"Stopped after {len(sizes)} objects: {error.strerror}. Repeat the command to continue."
            ) from None
    for problem in problems[:MAX_PROBLEMS]:
        print_note(problem)
    print_line(
        f"{len(sizes)} of {len(objects)} objects ({size_text(sum(sizes))}) are in {url}, each with its SHA-256 verified"
    )
    if problems:
        raise CliError(f"{len(problems)} objects were not copied; the lines above name the first {MAX_PROBLEMS}.")


@contextmanager
def _work_directory(directory: Path) -> "Iterator[Path]":
    """Where objects pass through, and the ledger is: `directory`, unless its disk failed and is read-only."""
    if os.access(directory, os.W_OK):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="tunery-copy-") as temporary:
        print_note(
            f"{directory} is read-only: each object passes through {temporary}, and a repetition reads all again."
        )
        yield Path(temporary)


def _target(directory: Path) -> "tuple[str, Storage]":
    """The URL of the bucket, and its storage."""
    from pydantic import ValidationError

    from app.settings import Settings, invalid_settings
    from app.storage import open_storage

    try:
        settings = Settings(database_url="", redis_url="")
    except ValidationError as error:
        raise UsageError(invalid_settings(error)) from None
    if settings.s3_location is None:
        raise UsageError("TUNERY_STORAGE_URL names no bucket; set it, such as s3://bucket/prefix, and its credentials.")
    return settings.storage_url, open_storage(directory, settings.s3_location)
