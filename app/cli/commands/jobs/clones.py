"""`tunery jobs clone` and `tunery jobs diff`: repeat a job with changed settings, and compare two jobs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.job_request import build_clone_body, target_modules
from app.cli.client.references import JOB, REFERENCE_FORMS, JobId
from app.cli.client.service_discovery import job_path
from app.cli.client.transfers import uploaded_files
from app.cli.commands.jobs.jobs import item_text, print_created
from app.cli.commands.jobs.progress import raise_unless_succeeded, watch_or_detach
from app.cli.job_options import BatchSize, Epochs, LoraRank, Metadata, NoQuantization, Seed, Settings, TargetModules
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

SECTIONS = ("data", "config", "environment", "result")
DIGEST_CHARACTERS = 12
MAX_CHARACTERS = 60


@commands.command("clone")
@with_client
def clone(
    client: "Client",
    job_id: JobId,
    model: Annotated[str | None, typer.Option(help="Another base model.")] = None,
    training_file: Annotated[str | None, typer.Option(help="Another file id, or path of a file to upload.")] = None,
    validation_file: Annotated[str | None, typer.Option(help="Another file id, or path of a file to upload.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Suffix of the fine-tuned model's name.")] = None,
    seed: Seed = None,
    n_epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Absolute learning rate, such as 2e-4.")] = None,
    lora_r: LoraRank = None,
    lora_alpha: Annotated[float | None, typer.Option(help="LoRA alpha; the adapter is scaled by alpha / r.")] = None,
    modules: TargetModules = None,
    no_quantization: NoQuantization = False,
    settings: Settings = None,
    metadata: Metadata = None,
    urgent: Annotated[
        bool | None, typer.Option("--urgent/--not-urgent", help="Whether to start before all other jobs.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Watch the job until it has finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a job with the settings of another and print its id. Options override the copied settings."""
    changes = build_clone_body(
        {
            "model": model,
            "training_file": training_file,
            "validation_file": validation_file,
            "suffix": suffix,
            "seed": seed,
            "urgent": urgent,
        },
        {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate": learning_rate},
        {"r": lora_r, "alpha": lora_alpha, "target_modules": target_modules(modules)},
        no_quantization,
        settings or [],
        metadata or [],
    )
    with uploaded_files(client, changes) as body:
        job = client.post(job_path(job_id, "clone"), body)
    print_created(job, as_json, follow)
    if follow:
        raise_unless_succeeded(watch_or_detach(client, job["id"], as_json))


@commands.command("diff")
@with_client
def diff(
    client: "Client",
    job_id: JobId,
    other: Annotated[str, typer.Argument(help=f"Job to compare with: {REFERENCE_FORMS}.", metavar="OTHER"), JOB],
    show_all: Annotated[bool, typer.Option("--all", help="Show equal values too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the differences of two jobs: data, configuration, environment, result."""
    comparison = client.get(job_path(job_id, "diff"), **{"with": other})
    if as_json:
        print_json(comparison)
        return
    rows = [
        [section, row["path"], _text(row["left"]), _text(row["right"])]
        for section in SECTIONS
        for row in comparison[section]["values"]
        if show_all or row["differs"]
    ]
    print_note(f"left: {job_id}, right: {other}")
    print_table(["", "value", "left", "right"], rows, "No differences.")
    same = [section for section in SECTIONS if not comparison[section]["differences"]]
    if same and rows:
        print_note(f"No differences in: {', '.join(same)}.")


def _text(value: Any) -> str:
    """Shorten digests and long lists for the table; `--json` prints them in full."""
    if value is None:
        return "-"
    text = item_text(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:DIGEST_CHARACTERS]
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
