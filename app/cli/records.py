"""`tunery jobs logs` and `tunery jobs metrics`: what a job left in writing."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.address import job_path
from app.cli.options import AsJson, with_client
from app.cli.output import print_json, print_table, remark

if TYPE_CHECKING:
    from app.cli.client import Client

commands = typer.Typer()

COLUMNS = ("step", "train_loss", "full_valid_loss", "learning_rate", "tokens_per_second")
JobId = Annotated[str, typer.Argument(help="The job's id.", metavar="JOB")]
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
        remark("No log yet: the trainer has not started, or it has said nothing.")
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


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
