"""`tunery adapters`: download, merge and compare the adapter of a finished job or one of its checkpoints."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.client.references import CheckpointId, JobWithResult, find_checkpoint, job_path
from app.cli.client.transfers import RemoteFile, download_verified, prepare_place, unpack
from app.cli.errors import CliError, UsageError
from app.cli.options import with_client
from app.cli.output.compare import DEFAULT_PROMPT_COUNT, compare, print_comparison, read_examples, run_module
from app.cli.output.console import size_text, stderr_console
from app.cli.output.progress import is_finished
from app.cli.output.results import Result, line
from app.domain.error_text.json_text import counted
from app.domain.evaluations.spec import precision_text
from app.domain.jobs.states import ExitCode
from app.system.model_files import hash_directory

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Trained adapters.")

MERGER = "worker.trainer.merge"  # runs in a child process: the CLI never imports torch
MERGER_USAGE_ERRORS = (ExitCode.BAD_SPEC, ExitCode.OTHER_BASE)
DIGEST_CHARACTERS_IN_NAME = 12  # a partial file is never continued with the bytes of another archive
Base = Annotated[Path, typer.Option("--base", help="The base model's directory, as it was registered.")]


class Download(NamedTuple):
    directory: Path
    source: RemoteFile
    manifest: dict[str, Any]


@commands.command("download")
@with_client
def download_adapter(
    client: "Client",
    job_id: JobWithResult,
    directory: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output directory; must not exist. Default: ./<job id>")
    ] = None,
    checkpoint: CheckpointId = None,
) -> Result:
    """Download and verify an adapter, and print its directory. An interrupted download is resumed."""
    done = download(client, job_id, directory, checkpoint)
    files = done.manifest["files"]
    value = {"directory": str(done.directory), **done.source._asdict(), "files": files}
    note = f"Verified {counted(len(files), 'file')}, {size_text(done.source.size_bytes)}, SHA-256 {done.source.sha256}."
    return line(value, str(done.directory), note)


@commands.command("merge")
@with_client
def merge_adapter(
    client: "Client",
    job_id: JobWithResult,
    base: Base,
    directory: Annotated[Path, typer.Option("--to", help="Output directory for the merged model; must not exist.")],
    checkpoint: CheckpointId = None,
) -> Result:
    """Download an adapter and merge it into its base model on this machine. The result needs no PEFT."""
    prepare_place(directory, "--to")
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=directory.parent) as temporary:
        adapter = download(client, job_id, Path(temporary) / "adapter", checkpoint)
        merged = _merge(base, adapter.directory, directory)
    note = f"The adapter changed {merged['changed']} of the base model's {merged['tensors']} tensors."
    return line(merged, str(directory), note)


@commands.command("compare")
@with_client
def compare_answers(
    client: "Client",
    job_id: JobWithResult,
    base: Base,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", help="JSONL file of held-out chats; the last message of each is the expected answer."
        ),
    ],
    limit: Annotated[
        int, typer.Option(min=1, help="Number of prompts, from the start of the file.")
    ] = DEFAULT_PROMPT_COUNT,
    checkpoint: CheckpointId = None,
) -> Result:
    """Compare the answers of the base model and of the adapter to held-out prompts, on this machine."""
    examples = read_examples(prompts, limit)
    with tempfile.TemporaryDirectory(prefix="tunery-compare-") as temporary:
        adapter = download(client, job_id, Path(temporary) / "adapter", checkpoint)
        _require_trained_base(base, adapter.manifest)
        with stderr_console().status("generating the answers of the base model and of the adapter"):
            answers = compare(base, adapter.directory, examples)
    title = "Held-out prompts, base model in " + precision_text(adapter.manifest.get("quantization"))
    return Result([asdict(answer) for answer in answers], lambda: print_comparison(answers, title))


def download(client: "Client", job_id: str, directory: Path | None = None, checkpoint: str | None = None) -> Download:
    """Download, verify and unpack an adapter. `directory` appears by a rename, once it is complete."""
    if checkpoint is None:
        source, name = _adapter_source(client, job_id), job_id
    else:
        row = find_checkpoint(client, job_id, checkpoint)
        file = client.get(f"files/{row['adapter_archive_file_id']}")
        source = RemoteFile(f"files/{file['id']}/content", file["bytes"], file["sha256"])
        name = f"{job_id}-step-{row['step_number']}"
    directory = directory or Path(name)
    prepare_place(directory)
    part = directory.with_name(f".{directory.name}.{source.sha256[:DIGEST_CHARACTERS_IN_NAME]}.part")
    manifest = unpack(download_verified(client, source, part, "downloading"), directory)
    part.unlink()
    return Download(directory, source, manifest)


def _require_trained_base(base: Path, manifest: dict[str, Any]) -> None:
    """Raises UsageError unless `base` has the files that the adapter was trained on."""
    trained_on = manifest.get("base_model")
    try:
        manifest_sha256 = hash_directory(base)[1]
    except OSError as error:
        raise UsageError(f"Cannot read the base model's directory {base}: {error.strerror}.") from error
    if trained_on is not None and manifest_sha256 != trained_on["manifest_sha256"]:
        raise UsageError(
            f"The files in {base} are not the base model {trained_on['name']} that the adapter was trained on. Give "
            "the directory that was registered (`tunery models where NAME`)."
        )


def _merge(base: Path, adapter: Path, directory: Path) -> dict[str, Any]:
    exit_code, output, error = run_module(MERGER, base, adapter, directory)
    if exit_code in MERGER_USAGE_ERRORS:
        raise UsageError(error)
    if exit_code != 0:
        raise CliError(
            f"The merge failed ({error}). `tunery adapters download` downloads the adapter without merging it."
        )
    return dict(json.loads(output))


def _adapter_source(client: "Client", job_id: str) -> RemoteFile:
    job = client.get(job_path(job_id))
    adapter = job.get("adapter")
    if adapter is None:
        reason = "has no adapter" if is_finished(job) else "has no adapter yet (`tunery jobs watch` waits for it)"
        raise UsageError(f"{job_id} is {job['status']} and {reason}. Name a checkpoint with --checkpoint STEP.")
    return RemoteFile(job_path(job_id, "adapter", "archive"), adapter["bytes"], adapter["sha256"])
