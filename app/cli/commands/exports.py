"""`tunery jobs export`: the merged model, made by a worker, and on request brought here, every byte verified."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JobId
from app.cli.client.service_discovery import ID, job_path
from app.cli.commands.files import fetch_file
from app.cli.errors import CliError, Missing, UsageError
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_line, print_note, print_table, size_text, time_text

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

POLL_SECONDS = 1.0
WAITING = " (waiting for free disk space)"
MAX_LISTED = 100


@commands.command("export")
@with_client
def export(
    client: "Client",
    job_id: JobId,
    kind: Annotated[str, typer.Option("--type", help="What to make.")] = "merged",
    checkpoint: Annotated[str | None, typer.Option(help="A kept checkpoint's id, instead of the result.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download it into a directory that is not there yet.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Don't wait for it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a worker make one ordinary model of an adapter and its base. Asked again, it is the same export."""
    if directory is not None and (detach or directory.exists()):
        why = "needs the export to be done; leave --detach out" if detach else "is there already; choose another"
        raise UsageError(f"--output {directory} {why}.")
    asked = {"type": kind} | ({"checkpoint": checkpoint} if checkpoint else {})
    made = client.post(job_path(job_id, "exports"), asked)
    if not detach:
        made = _wait(client, job_id, made)
    if directory is not None:
        _download(client, made, directory)
    if as_json:
        print_json(made)
        return
    print_line(str(directory or made["id"]))
    if made["status"] == "succeeded":
        print_note(f"{len(made['files'])} files, {size_text(made['bytes'])}; each has its SHA-256 in `--json`.")


@commands.command("exports")
@with_client
def list_exports(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's exports, newest first."""
    found = list(client.pages(job_path(job_id, "exports"), MAX_LISTED))
    if as_json:
        print_json(found)
        return
    rows = [
        [one["id"], one["type"], _status(one), str(one["step_number"]), size_text(one["bytes"] or 0),
         time_text(one["created_at"])]
        for one in found
    ]  # fmt: skip
    columns = ["id", "type", "status", "step", "size", "created"]
    print_table(columns, rows, f"No exports. `tunery jobs export {job_id}` makes one.")


@commands.command("delete-export")
@with_client
def delete_export(
    client: "Client",
    job_id: JobId,
    export_id: Annotated[str, typer.Argument(help="The export's id, such as ftexport-0a1b….", metavar="EXPORT")],
) -> None:
    """Delete an export with its files. One that is being made is given up."""
    if not ID.fullmatch(export_id):
        raise Missing(f"There is no export {export_id!r}; `tunery jobs exports {job_id}` has them.")
    client.delete(job_path(job_id, "exports", export_id))
    print_line(f"{export_id} deleted")


def _wait(client: "Client", job_id: str, made: dict[str, Any]) -> dict[str, Any]:
    if made["status"] in ("queued", "running"):
        print_note(f"{made['id']} is {_status(made)}; Ctrl-C leaves it to the worker.")
    while made["status"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        before, made = made, client.get(job_path(job_id, "exports", made["id"]))
        if made.get("phase") and made.get("phase") != before.get("phase"):
            print_note(f"{made['id']} is {_status(made)}; it is tried again by itself.")
    if made["status"] == "failed":
        raise CliError(f"The export failed ({made['error']['code']}): {made['error']['message']}")
    return made


def _status(export: dict[str, Any]) -> str:
    return f"{export['status']}{WAITING if export.get('phase') == 'waiting_for_storage' else ''}"


def _download(client: "Client", made: dict[str, Any], directory: Path) -> None:
    """Aside, verified, renamed: `directory` is there whole or not at all. An interrupted download goes on."""
    aside = directory.with_name(f".{directory.name}.{made['id']}.part")
    aside.mkdir(parents=True, exist_ok=True)
    for file in made["files"]:
        part = aside / Path(file["filename"]).name
        fetch_file(client, file, part)
    shutil.move(aside, directory)
