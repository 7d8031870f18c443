"""`tunery jobs logs` and `tunery jobs metrics`: what a job left in writing."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JobId
from app.cli.client.service_discovery import job_path
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_note, print_table
from app.cli.output.progress import is_over

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

COLUMNS = ("step", "train_loss", "full_valid_loss", "learning_rate", "tokens_per_second")
MaxPoints = Annotated[
    int | None, typer.Option(min=2, help="At most so many steps: those that keep the shape of the loss.")
]


@commands.command("logs")
@with_client
def logs(
    client: "Client",
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt's; absent: the last one's.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=1, help="Only so many, from the end.")] = None,
) -> None:
    """Print the end of what the trainer wrote to its standard error."""
    text = client.text(job_path(job_id, "logs"), **_given(attempt=attempt, lines=lines))
    if not text:
        print_note(_why_empty(client.get(job_path(job_id))))
    typer.echo(text, nl=False)


@commands.command("metrics")
@with_client
def metrics(
    client: "Client",
    job_id: JobId,
    max_points: MaxPoints = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, as in the results file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what each step measured, oldest first."""
    asked = _given(max_points=max_points)
    if as_csv:
        typer.echo(client.text(job_path(job_id, "metrics"), format="csv", **asked), nl=False)
        return
    found = client.get(job_path(job_id, "metrics"), **asked)
    if as_json:
        print_json(found)
        return
    rows = [[_cell(row.get(column)) for column in COLUMNS] for row in found["data"]]
    print_table([column.replace("_", " ") for column in COLUMNS], rows, "No steps yet.")


def _why_empty(job: dict[str, Any]) -> str:
    if is_over(job):
        why = "its trainer wrote nothing to its standard error" if job["attempts"] else "no trainer was started for it"
        return f"No log: the job's status is {job['status']}, and {why}."
    if job["attempts"]:
        return f"No log yet: the job's status is {job['status']}, and its trainer has written nothing so far."
    return f"No log yet: the job's status is {job['status']}, and no trainer has started."


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
