"""Commands for the results of a job: its exports, and its deliveries."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JobId, JobWithResult
from app.cli.client.service_discovery import ID_PATTERN, job_path
from app.cli.client.transfers import download_file
from app.cli.errors import CliError, NotFoundError, UsageError
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_line, print_note, print_table, size_text, time_text

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

POLL_SECONDS = 1.0
MAX_LISTED = 100
PHASES = {
    "waiting_for_storage": " (waiting for free disk space)",
    "waiting_for_worker": (
        " (no running worker makes GGUF files; its operator runs `pip install '.[gguf]'` in its checkout of Tunery)"
    ),
}


@commands.command("export")
@with_client
def export(
    client: "Client",
    job_id: JobWithResult,
    kind: Annotated[
        str, typer.Option("--type", help="Type of the export: merged, gguf (the merged model) or gguf_adapter.")
    ] = "merged",
    quantization: Annotated[
        str | None, typer.Option(help="Weights of a gguf export: F16, Q8_0 or Q4_K_M. Default: Q8_0.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint id. Default: the final adapter.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the export into this directory; must not exist.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export the base model with the adapter merged into it, as a directory or as one GGUF file for llama.cpp and
    Ollama, or the adapter as a GGUF file. A repeated request returns the existing export."""
    if directory is not None and (detach or directory.exists()):
        reason = "needs a finished export; omit --detach" if detach else "already exists; choose another directory"
        raise UsageError(f"--output {directory} {reason}.")
    given = {"quantization": quantization, "checkpoint": checkpoint}
    body = {"type": kind} | {name: value for name, value in given.items() if value is not None}
    created = client.post(job_path(job_id, "exports"), body)
    if not detach:
        created = _wait(client, job_id, created)
    if directory is not None:
        _download(client, created, directory)
    if as_json:
        print_json(created)
        return
    print_line(str(directory or created["id"]))
    if created["status"] == "succeeded":
        print_note(f"{len(created['files'])} files, {size_text(created['bytes'])}; --json shows their SHA-256 digests.")


@commands.command("exports")
@with_client
def list_exports(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's exports, newest first."""
    exports = list(client.pages(job_path(job_id, "exports"), MAX_LISTED))
    if as_json:
        print_json(exports)
        return
    rows = [
        [
            row["id"],
            " ".join(filter(None, (row["type"], row["quantization"]))),
            _status(row),
            str(row["step_number"]),
            size_text(row["bytes"] or 0),
            time_text(row["created_at"]),
        ]
        for row in exports
    ]
    columns = ["id", "type", "status", "step", "size", "created"]
    print_table(columns, rows, f"No exports. Create one with `tunery jobs export {job_id}`.")


@commands.command("delete-export")
@with_client
def delete_export(
    client: "Client",
    job_id: JobId,
    export_id: Annotated[str, typer.Argument(help="Export id, such as ftexport-0a1b….", metavar="EXPORT")],
) -> None:
    """Delete an export and its files. An unfinished export is cancelled."""
    if not ID_PATTERN.fullmatch(export_id):
        raise NotFoundError(f"No such export: {export_id!r}; see `tunery jobs exports {job_id}`.")
    client.delete(job_path(job_id, "exports", export_id))
    print_line(f"{export_id} deleted")


def _wait(client: "Client", job_id: str, export: dict[str, Any]) -> dict[str, Any]:
    if export["status"] in ("queued", "running"):
        print_note(f"{export['id']} is {_status(export)}; Ctrl-C stops waiting and does not cancel the export.")
    while export["status"] in ("queued", "running"):
        time.sleep(POLL_SECONDS)
        before, export = export, client.get(job_path(job_id, "exports", export["id"]))
        if export.get("phase") and export.get("phase") != before.get("phase"):
            print_note(f"{export['id']} is {_status(export)}; it continues automatically.")
    if export["status"] == "failed":
        raise CliError(f"The export failed ({export['error']['code']}): {export['error']['message']}")
    return export


def _status(export: dict[str, Any]) -> str:
    return f"{export['status']}{PHASES.get(export.get('phase') or '', '')}"


def _download(client: "Client", export: dict[str, Any], directory: Path) -> None:
    """Download and verify the files, then rename their directory to `directory`. An interrupted download is resumed."""
    temporary = directory.with_name(f".{directory.name}.{export['id']}.part")
    temporary.mkdir(parents=True, exist_ok=True)
    for file in export["files"]:
        download_file(client, file, temporary / Path(file["filename"]).name)
    shutil.move(temporary, directory)


@commands.command("deliver")
@with_client
def deliver(
    client: "Client",
    job_id: JobWithResult,
    to: Annotated[str, typer.Option("--to", help="Name of the target; see `tunery targets list`.")],
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint id. Default: the final adapter.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the delivery.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver an adapter, and wait until its first attempt has ended."""
    body = {"target": to} | ({"checkpoint": checkpoint} if checkpoint else {})
    delivery = client.post(job_path(job_id, "deliveries"), body)
    while not detach and delivery["status"] == "pending" and delivery["error"] is None:
        time.sleep(POLL_SECONDS)
        delivery = client.get(job_path(job_id, "deliveries", delivery["id"]))
    if as_json:
        print_json(delivery)
    elif delivery["error"] is None:
        print_line(f"{delivery['id']} {delivery['status']}{_verdict(delivery)}")
    if delivery["error"] is not None:
        raise CliError(f"The delivery is {delivery['status']}: {delivery['error']}")


@commands.command("deliveries")
@with_client
def list_deliveries(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """List the deliveries of a job, newest first."""
    deliveries = list(client.pages(job_path(job_id, "deliveries"), MAX_LISTED))
    if as_json:
        print_json(deliveries)
        return
    columns = ["id", "target", "status", "served model", "check", "error"]
    rows = [
        [row["id"], row["target"], row["status"], row["served_model"], _verdict(row).strip(" ,"), row["error"] or ""]
        for row in deliveries
    ]
    print_table(columns, rows, f"No deliveries. Make one with `tunery jobs deliver {job_id} --to TARGET`.")


@commands.command("withdraw")
@with_client
def withdraw(
    client: "Client",
    job_id: JobId,
    delivery_id: Annotated[str, typer.Argument(help="Delivery id; see `tunery jobs deliveries`.", metavar="DELIVERY")],
) -> None:
    """Remove the adapter from the target; the model stays."""
    if not ID_PATTERN.fullmatch(delivery_id):
        raise NotFoundError(f"No such delivery: {delivery_id!r}; see `tunery jobs deliveries {job_id}`.")
    client.delete(job_path(job_id, "deliveries", delivery_id))
    print_line(f"{delivery_id} is being withdrawn")


def _verdict(delivery: dict[str, Any]) -> str:
    check = delivery["check"]
    if check is None:
        return ""
    return f", check: {check['verdict']}" + (f" ({check['reason']})" if check["reason"] else "")
