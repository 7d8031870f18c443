"""Commands for the results of a job: its exports, and its deliveries."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.polling import poll, wait
from app.cli.client.references import CheckpointId, JobWithResult, job_path
from app.cli.client.transfers import download_file
from app.cli.errors import CliError, UsageError
from app.cli.options import given, with_client
from app.cli.output.console import size_text, time_text
from app.cli.output.results import Result, line
from app.cli.resource import part_of_job
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

ExportId = Annotated[str, typer.Argument(help="Export id, such as ftexport-0a1b….", metavar="EXPORT")]
DeliveryId = Annotated[str, typer.Argument(help="Delivery id; see `tunery jobs deliveries`.", metavar="DELIVERY")]
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
    checkpoint: CheckpointId = None,
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the export into this directory; must not exist.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the export.")] = False,
) -> Result:
    """Export the base model with the adapter merged into it, as a directory or as one GGUF file for llama.cpp and
    Ollama, or the adapter as a GGUF file. A repeated request returns the existing export."""
    if directory is not None and (detach or directory.exists()):
        reason = "needs a finished export; omit --detach" if detach else "already exists; choose another directory"
        raise UsageError(f"--output {directory} {reason}.")
    body = given(type=kind, quantization=quantization, checkpoint=checkpoint)
    created = client.post(job_path(job_id, "exports"), body)
    if not detach:
        created = wait(client, job_path(job_id, "exports", created["id"]), created, _phase_note)
    if directory is not None:
        _download(client, created, directory)
    note = ""
    if created["status"] == "succeeded":
        files = counted(len(created["files"]), "file")
        note = f"{files}, {size_text(created['bytes'])}; --json shows their SHA-256 digests."
    return line(created, str(directory or created["id"]), note)


exports = part_of_job(commands, "exports", ExportId)
exports.add_list(
    "List a job's exports, newest first.",
    {
        "id": "id",
        "type": lambda row: " ".join(filter(None, (row["type"], row["quantization"]))),
        "status": lambda row: _status(row),
        "step": "step_number",
        "size": lambda row: size_text(row["bytes"] or 0),
        "created": ("created_at", time_text),
    },
    "No exports. Create one with `tunery jobs export {}`.",
    name="exports",
)
exports.add_delete("Delete an export and its files. An unfinished export is cancelled.", name="delete-export")


def _phase_note(export: dict[str, Any]) -> str:
    return f"{export['id']} is {_status(export)}; it continues automatically." if export.get("phase") else ""


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
    checkpoint: CheckpointId = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the delivery.")] = False,
) -> Result:
    """Deliver an adapter, and wait until its first attempt has ended."""
    delivery = client.post(job_path(job_id, "deliveries"), given(target=to, checkpoint=checkpoint))
    if not detach:
        path = job_path(job_id, "deliveries", delivery["id"])
        delivery = poll(client, path, delivery, lambda row: row["status"] == "pending" and row["error"] is None)
    if delivery["error"] is not None:
        error = CliError(f"The delivery is {delivery['status']}: {delivery['error']}")
        return Result(delivery, lambda: None, error)
    verdict = _verdict(delivery)
    return line(delivery, f"{delivery['id']} {delivery['status']}" + (f", check: {verdict}" if verdict else ""))


def _verdict(delivery: dict[str, Any]) -> str:
    check = delivery["check"]
    if check is None:
        return ""
    return str(check["verdict"]) + (f" ({check['reason']})" if check["reason"] else "")


deliveries = part_of_job(commands, "deliveries", DeliveryId)
deliveries.add_list(
    "List the deliveries of a job, newest first.",
    {
        "id": "id",
        "target": "target",
        "status": "status",
        "served model": "served_model",
        "check": _verdict,
        "error": "error",
    },
    "No deliveries. Make one with `tunery jobs deliver {} --to TARGET`.",
    name="deliveries",
)
deliveries.add_delete(
    "Remove the adapter from the target; the model stays.", name="withdraw", done="is being withdrawn"
)
