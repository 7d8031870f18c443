"""`tunery adapters`: a finished job's adapter, or one of its checkpoints, as a directory that PEFT loads."""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.client.adapter_archive import check, fetch, unpack
from app.cli.client.references import JobId
from app.cli.client.service_discovery import job_path
from app.cli.errors import CliError, Missing, UsageError
from app.cli.options import AsJson, with_client
from app.cli.output.compare import ASKED, compare, held_out, show, width_text
from app.cli.output.console import messages, print_json, print_line, print_note, size_text
from app.cli.output.progress import bytes_bar, is_over
from app.system.model_files import hash_directory

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Trained adapters.")

MERGER = "worker.trainer.merge"  # a child process: torch is never imported here
MERGER_REFUSES = 64
DIGEST_LETTERS_IN_NAME = 12  # enough that a half of one archive is never continued with another's


class Source(NamedTuple):
    """An archive on the server, and what it must be."""

    path: str
    size_bytes: int
    sha256: str


class Download(NamedTuple):
    directory: Path
    source: Source
    manifest: dict[str, Any]


@commands.command("download")
@with_client
def download_adapter(
    client: "Client",
    job_id: JobId,
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="A directory that is not there yet; absent: ./JOB.")
    ] = None,
    checkpoint: Annotated[int | None, typer.Option(help="The step of a kept checkpoint, instead of the end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download an adapter, verify every byte of it, and print its directory. An interrupted download goes on."""
    done = download(client, job_id, directory or Path(_folder(job_id, checkpoint)), checkpoint)
    files = done.manifest["files"]
    if as_json:
        print_json({"directory": str(done.directory), **done.source._asdict(), "files": files})
        return
    print_line(str(done.directory))
    print_note(f"Verified {len(files)} files, {size_text(done.source.size_bytes)}, SHA-256 {done.source.sha256}.")


@commands.command("merge")
@with_client
def merge_adapter(
    client: "Client",
    job_id: JobId,
    base: Annotated[Path, typer.Option("--base", help="The base model's directory, as it was registered.")],
    directory: Annotated[Path, typer.Option("--to", help="A directory that is not there yet, for the model.")],
    checkpoint: Annotated[int | None, typer.Option(help="The step of a kept checkpoint, instead of the end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download an adapter and merge it into its base model on this machine: an ordinary model, without PEFT."""
    if directory.exists():
        raise UsageError(f"{directory} is there already. Choose another directory with --to, or remove it.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=directory.parent) as aside:
        adapter = download(client, job_id, Path(aside) / "adapter", checkpoint)
        merged = _merge(base, adapter.directory, directory)
    if as_json:
        print_json(merged)
        return
    print_line(str(directory))
    print_note(f"The adapter changed {merged['changed']} of the base model's {merged['tensors']} tensors.")


@commands.command("compare")
@with_client
def compare_answers(
    client: "Client",
    job_id: JobId,
    base: Annotated[Path, typer.Option("--base", help="The base model's directory, as it was registered.")],
    prompts: Annotated[
        Path,
        typer.Option("--prompts", help="Chat lines that were not trained on; each last message is the wanted one."),
    ],
    limit: Annotated[int, typer.Option(min=1, help="Only so many prompts, the first ones.")] = ASKED,
    checkpoint: Annotated[int | None, typer.Option(help="The step of a kept checkpoint, instead of the end.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer held-out prompts with the base model alone and with the adapter, on this machine, side by side."""
    examples = held_out(prompts, limit)
    with tempfile.TemporaryDirectory(prefix="tunery-compare-") as aside:
        adapter = download(client, job_id, Path(aside) / "adapter", checkpoint)
        _require_trained_base(base, adapter.manifest)
        with messages().status("generating the answers of the base model and of the adapter"):
            answers = compare(base, adapter.directory, examples)
    if as_json:
        print_json([asdict(answer) for answer in answers])
    else:
        show(answers, "Held-out prompts, the base model in " + width_text(adapter.manifest.get("quantization")))


def download(client: "Client", job_id: str, directory: Path, checkpoint: int | None = None) -> Download:
    """Fetch aside, check, unpack aside, verify, rename: `directory` is there whole or not at all."""
    if directory.exists() or directory.is_symlink():
        raise UsageError(f"{directory} is there already. Choose another directory with -o, or remove it.")
    source = _checkpoint(client, job_id, checkpoint) if checkpoint is not None else _adapter(client, job_id)
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = directory.with_name(f".{directory.name}.{source.sha256[:DIGEST_LETTERS_IN_NAME]}.part")
    have = part.stat().st_size if part.exists() else 0
    with bytes_bar("downloading", source.size_bytes, have) as advance:
        fetch(client, source.path, part, source.size_bytes, advance)
    check(part, source.size_bytes, source.sha256)
    manifest = unpack(part, directory)
    part.unlink()
    return Download(directory, source, manifest)


def _require_trained_base(base: Path, manifest: dict[str, Any]) -> None:
    """Raises UsageError unless `base` has the files that the adapter was trained on: another base answers nonsense."""
    trained_on = manifest.get("base_model")
    try:
        found = hash_directory(base)[1]
    except OSError as error:
        raise UsageError(f"The base model's directory {base} cannot be read: {error.strerror}.") from error
    if trained_on is not None and found != trained_on["manifest_sha256"]:
        raise UsageError(
            f"The files in {base} are not the base model {trained_on['name']} that the adapter was trained on. Name "
            "the directory that was registered (`tunery models where`)."
        )


def _merge(base: Path, adapter: Path, directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", MERGER, str(base), str(adapter), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().split("\n") or [""])[-1]
    if done.returncode == MERGER_REFUSES:
        raise UsageError(last)
    if done.returncode != 0:
        raise CliError(f"The merge failed ({last}). The adapter can be had with `tunery adapters download`.")
    return dict(json.loads(done.stdout))


def _adapter(client: "Client", job_id: str) -> Source:
    job = client.get(job_path(job_id))
    adapter = job.get("adapter")
    if adapter is None:
        what = "has no adapter" if is_over(job) else "has no adapter yet; `tunery jobs watch` waits for it"
        raise CliError(f"{job_id} is {job['status']} and {what}. A kept checkpoint can be had with --checkpoint STEP.")
    return Source(job_path(job_id, "adapter", "archive"), adapter["bytes"], adapter["sha256"])


def _checkpoint(client: "Client", job_id: str, step: int) -> Source:
    kept = list(islice(client.pages(job_path(job_id, "checkpoints"), 100), 100))
    found = next((one for one in kept if one["step_number"] == step), None)
    if found is None:
        steps = ", ".join(str(one["step_number"]) for one in kept) or "none"
        raise Missing(f"{job_id} keeps no checkpoint of step {step}; kept steps: {steps}.")
    file = client.get(f"files/{found['adapter_archive_file_id']}")
    return Source(f"files/{file['id']}/content", file["bytes"], file["sha256"])


def _folder(job_id: str, checkpoint: int | None) -> str:
    return job_id if checkpoint is None else f"{job_id}-step-{checkpoint}"
