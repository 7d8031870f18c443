"""`tunery backup`, `tunery restore`, `tunery fsck` and `tunery storage`: the data of the service, on the server."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client.service_discovery import find_database, find_layout
from app.cli.errors import CliError, NotFoundError, UsageError
from app.cli.options import AsJson, DataDir, with_database
from app.cli.output.console import print_fields, print_json, print_line, print_note, size_text
from app.cli.output.progress import bytes_bar
from app.cli.output.results import line
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.client.database import Database
    from app.cli.local_stack.data_directory import Layout
    from app.services.operations.backup_repository import BackupManifest
    from app.services.operations.integrity import IntegrityFinding
    from app.storage import Storage

commands = typer.Typer()

BackupDirectory = Annotated[
    Path, typer.Argument(metavar="DIRECTORY", help="Directory of backups. They share their objects.")
]
MAX_DAMAGED = 20  # in a message
DATA_FILES = ("admin-key", "secret-keys")  # of the data directory of `tunery up`
storage_commands = typer.Typer(no_args_is_help=True, help="Storage of files, adapters and snapshots (on the server).")

MAX_PROBLEMS = 20


@commands.command("backup")
def create_backup(
    directory: BackupDirectory,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Delete all but the newest N backups afterwards. Default: keep all.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Back up the database and all stored files while the service runs (on the server).

    Files that an earlier backup in the same directory has are not copied again. The backup contains secrets: protect
    it as you protect the data directory.
    """
    from app.services.operations.backup import back_up
    from app.services.operations.backup_repository import BackupRepository

    database_url, layout = find_database(data_dir), find_layout(data_dir)
    root = directory.resolve()
    _check_apart(root, layout.root)
    repository = BackupRepository(root)
    with _as_cli_errors():
        files = [layout.root / name for name in DATA_FILES if (layout.root / name).exists()]
        result = back_up(database_url, _storage(layout), repository, files, print_note)
        _record(database_url, result.manifest.name, len(result.manifest.damaged))
        deleted = repository.delete_old(keep) if keep is not None else []
    manifest = result.manifest
    if as_json:
        counts = {"objects": len(manifest.objects), "copied": result.copied_count, "copied_bytes": result.copied_bytes}
        print_json({"name": manifest.name, **counts, "damaged": dict(manifest.damaged), "deleted": deleted})
    else:
        copied = f"{result.copied_count} of {len(manifest.objects)} objects copied, {size_text(result.copied_bytes)}"
        print_fields([("backup", manifest.name), ("size", size_text(manifest.size_bytes)), ("copied", copied)])
        if deleted:
            print_line(f"Deleted: {', '.join(deleted)}")
    if manifest.damaged:
        raise CliError(
            f"The backup is made. Damaged in storage: {counted(len(manifest.damaged), 'object')}:\n{_lines(manifest)}\n"
            "Run `tunery fsck --repair --from DIRECTORY` to restore them from earlier backups."
        )


@commands.command("restore")
def restore_backup(
    directory: BackupDirectory,
    name: Annotated[str | None, typer.Option("--name", help="Name of the backup. Default: the newest.")] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Migrate a backup of an earlier release to this release.")
    ] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Restore a copy to look at: it sends no webhook events and delivers no adapters."),
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the backups and restore nothing.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a new data directory, or into the empty database of DATABASE_URL (on the server).

    Stored files go to TUNERY_STORAGE_URL if it is set, else into the data directory.
    """
    from app.cli.local_stack.restore import restore_data_directory
    from app.services.operations import restore
    from app.services.operations.backup_repository import BackupRepository

    repository, layout = BackupRepository(directory.resolve()), find_layout(data_dir)
    with _as_cli_errors():
        if show:
            names = repository.names()
            if as_json:
                print_json(names)
            for each in [] if as_json else names:
                print_line(each)
            return
        database_url = os.environ.get("DATABASE_URL")
        with repository.locked_for_reading(wait=False):
            manifest = restore.check_restorable(repository, name, migrate)
            if database_url:
                restore.restore(database_url, _storage(layout), repository, manifest, print_note, copy)
            else:
                _check_apart(repository.root, layout.root)
                restore_data_directory(layout, repository, manifest, DATA_FILES, print_note, copy)
    if as_json:
        print_json({"name": manifest.name, "damaged": dict(manifest.damaged), "copy": copy})
        return
    print_line(f"Restored the backup {manifest.name}.")
    if manifest.damaged:
        print_note(f"Damaged when it was made: {counted(len(manifest.damaged), 'object')}:\n{_lines(manifest)}")
    if copy:
        print_note("It is a copy: its webhook events and deliveries wait, and `tunery status` says so.")
    if database_url:
        print_line("Start the service with TUNERY_SECRET_KEYS of the time of the backup, which does not contain them.")
    else:
        print_line(f"Start the service: tunery up --data-dir {layout.root}")
    print_line("Base models are not part of a backup: `tunery models where NAME` prints the directory of one.")


@commands.command("fsck")
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Delete objects that no row names, and restore damaged ones with --from.")
    ] = False,
    backups: Annotated[
        Path | None, typer.Option("--from", metavar="DIRECTORY", help="Directory of backups to restore objects from.")
    ] = None,
    sizes_only: Annotated[bool, typer.Option("--sizes-only", help="Compare sizes, and read no file.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare every stored file with its row in the database (on the server).

    Exit code 1 if something is wrong and was not repaired.
    """
    from app.db.engine import make_engine
    from app.services.operations import integrity
    from app.services.operations.backup_repository import BackupRepository

    if backups is not None and not repair:
        raise UsageError("--from restores objects, so it needs --repair.")
    database_url, layout = find_database(data_dir), find_layout(data_dir)
    repository = None if backups is None else BackupRepository(backups.resolve())
    engine = make_engine(database_url)
    try:
        with _as_cli_errors():
            storage = _storage(layout)
            findings = []
            for finding in integrity.check(engine, storage, not sizes_only, repair, repository):
                findings.append(finding)
                if not as_json:
                    _print_finding(finding)
    finally:
        engine.dispose()
    if as_json:
        print_json([vars(finding) for finding in findings])
    remaining = [finding for finding in findings if finding.repaired is None]
    if remaining:
        raise CliError(
            f"Problems that remain: {len(remaining)}. --repair deletes objects that no row names; with --from "
            "DIRECTORY it also restores missing and damaged objects from backups."
        )
    print_note("Every stored file is as its row says.")


@contextlib.contextmanager
def _as_cli_errors() -> Iterator[None]:
    from app.services.operations.backup_repository import BackupError, BackupNotFound, UnsuitableDirectory

    classes = {BackupNotFound: NotFoundError, UnsuitableDirectory: UsageError}
    try:
        yield
    except BackupError as error:
        raise classes.get(type(error), CliError)(str(error)) from None


def _check_apart(backups: Path, data: Path) -> None:
    """Raises UsageError if one directory contains the other: a backup would contain itself."""
    if backups.is_relative_to(data.resolve()) or data.resolve().is_relative_to(backups):
        raise UsageError(f"{backups} and the data directory {data} are one inside the other. Choose another directory.")


def _lines(manifest: "BackupManifest") -> str:
    """The first damaged objects of a backup."""
    return "\n".join(f"  {key}: {problem}" for key, problem in list(manifest.damaged.items())[:MAX_DAMAGED])


def _print_finding(finding: "IntegrityFinding") -> None:
    owner = f" ({finding.owner})" if finding.owner else ""
    outcome = finding.repaired or (f"not repaired: {finding.failure}" if finding.failure else "")
    print_line(f"{finding.key}: {finding.problem}{owner}" + (f"; {outcome}" if outcome else ""))


def _storage(layout: "Layout") -> "Storage":
    """The storage of the running `tunery up`, or of the environment."""
    from app.storage import open_storage

    running = {} if os.environ.get("DATABASE_URL") else layout.read_runtime() or {}
    settings = layout.storage_settings(**running.get("storage", {}))
    return open_storage(settings.storage_dir, settings.s3_location)


def _record(database_url: str, name: str, damaged_count: int) -> None:
    """Write the backup into the audit log, and for `tunery status`, which shows the last one."""
    from app.cli.client.database import Database
    from app.db.access import audit
    from app.db.operations import status

    with Database(database_url, "backups.create").transaction() as session:
        audit.record(session, name)
        status.report(session, "backup", {"name": name, "damaged": damaged_count})


@storage_commands.callback()
def _group() -> None:
    """A group, although it has one command."""


@storage_commands.command("copy")
@with_database
def copy(
    database: "Database",
    directory: Annotated[Path, typer.Argument(help="The directory to copy from: DATA-DIR/storage.")],
    as_json: AsJson = False,
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
                f"Stopped after {counted(len(sizes), 'object')}: {error.strerror}. Repeat the command to continue."
            ) from None
    for problem in problems[:MAX_PROBLEMS]:
        print_note(problem)
    counts = {"copied": len(sizes), "objects": len(objects), "copied_bytes": sum(sizes)}
    shown = (
        f"{len(sizes)} of {len(objects)} objects ({size_text(sum(sizes))}) are in {url}, each with its SHA-256 verified"
    )
    line({**counts, "storage_url": url, "problems": problems}, shown).print(as_json)
    if problems:
        raise CliError(
            f"Not copied: {counted(len(problems), 'object')}; the lines above name the first {MAX_PROBLEMS}."
        )


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
