"""`tunery jobs clone` and `tunery jobs diff`: repeat a job with changed settings, and compare two jobs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JOB, REFERENCE_FORMS, JobId
from app.cli.client.service_discovery import job_path
from app.cli.commands.jobs.jobs import Follow, create_and_watch, item_text
from app.cli.job_options import (
    with_job_body,
)
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
@with_job_body(
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "n_epochs",
    "batch_size",
    "learning_rate",
    "lora.r",
    "lora.alpha",
    "lora.target_modules",
    "metadata",
    "urgent",
    is_clone=True,
)
def clone(
    client: "Client", job_id: JobId, body: dict[str, Any], follow: Follow = False, as_json: AsJson = False
) -> None:
    """Create a job with the settings of another and print its id. Options override the copied settings."""
    create_and_watch(client, job_path(job_id, "clone"), body, follow, as_json)


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
