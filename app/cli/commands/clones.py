"""`tunery jobs clone` and `tunery jobs diff`: a job again but for some values, and what sets two jobs apart."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.job_request import build_changes, target_modules
from app.cli.client.references import HOW, JOB, JobId
from app.cli.client.service_discovery import job_path
from app.cli.client.training_files import uploaded
from app.cli.commands.jobs import item_text, print_created
from app.cli.commands.watch import raise_unless_succeeded, watch_or_detach
from app.cli.job_options import BatchSize, Epochs, LoraRank, Metadata, NoQuantization, Seed, Settings, TargetModules
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

SECTIONS = ("data", "config", "environment", "result")
DIGEST_LETTERS = 12
MAX_CHARS = 60


@commands.command("clone")
@with_client
def clone(
    client: "Client",
    job_id: JobId,
    model: Annotated[str | None, typer.Option(help="Another model.")] = None,
    training_file: Annotated[str | None, typer.Option(help="Another file's id, or a path to upload.")] = None,
    validation_file: Annotated[str | None, typer.Option(help="Another file's id, or a path to upload.")] = None,
    suffix: Annotated[str | None, typer.Option(help="A word for the new model's name.")] = None,
    seed: Seed = None,
    n_epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Absolute, such as 2e-4.")] = None,
    lora_r: LoraRank = None,
    lora_alpha: Annotated[float | None, typer.Option(help="The adapter's scale is alpha / r.")] = None,
    modules: TargetModules = None,
    no_quantization: NoQuantization = False,
    settings: Settings = None,
    metadata: Metadata = None,
    follow: Annotated[bool, typer.Option("--watch", help="Stay until the job is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a job like another, and print its id. What is not given is as it was, to the last resolved number."""
    changes = build_changes(
        {"model": model, "training_file": training_file, "validation_file": validation_file, "suffix": suffix,
         "seed": seed},
        {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate": learning_rate},
        {"r": lora_r, "alpha": lora_alpha, "target_modules": target_modules(modules)},
        no_quantization,
        settings or [],
        metadata or [],
    )  # fmt: skip
    with uploaded(client, changes) as body:
        job = client.post(job_path(job_id, "clone"), body)
    print_created(job, as_json, follow)
    if follow:
        raise_unless_succeeded(watch_or_detach(client, job["id"], as_json))


@commands.command("diff")
@with_client
def diff(
    client: "Client",
    job_id: JobId,
    other: Annotated[str, typer.Argument(help=f"The job to compare with: {HOW}.", metavar="OTHER"), JOB],
    show_all: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what sets two jobs apart: data, configuration, environment, result."""
    found = client.get(job_path(job_id, "diff"), **{"with": other})
    if as_json:
        print_json(found)
        return
    rows = [
        [section, row["path"], _text(row["left"]), _text(row["right"])]
        for section in SECTIONS
        for row in found[section]["values"]
        if show_all or row["differs"]
    ]
    print_note(f"left: {job_id}, right: {other}")
    print_table(["", "value", "left", "right"], rows, "The two do not differ in anything.")
    same = [section for section in SECTIONS if not found[section]["differences"]]
    if same and rows:
        print_note(f"The same in both: {', '.join(same)}.")


def _text(value: Any) -> str:
    """Digests and long lists are told apart by their beginnings; `--json` has the whole."""
    if value is None:
        return "-"
    text = item_text(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:DIGEST_LETTERS]
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"
