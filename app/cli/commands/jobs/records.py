"""`tunery jobs attempts`, `logs` and `metrics`: a job's attempts, the trainer's log, the metrics of each step."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JobId
from app.cli.client.service_discovery import job_path
from app.cli.options import AsJson, with_client
from app.cli.output.console import duration_text, print_json, print_note, print_table, time_text
from app.cli.output.progress import is_finished

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

COLUMNS = ("step", "train_loss", "full_valid_loss", "learning_rate", "tokens_per_second")
MaxPoints = Annotated[
    int | None, typer.Option(min=2, help="Maximum number of steps, selected to preserve the shape of the loss curve.")
]


@commands.command("attempts")
@with_client
def list_attempts(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's attempts, oldest first, with the reason for which each ended."""
    attempts = client.get(job_path(job_id, "attempts"))["data"]
    if as_json:
        print_json(attempts)
        return
    rows = [
        [
            str(attempt["attempt"]),
            "training" if attempt["kind"] == "train" else "validation of the files",
            time_text(attempt["started_at"]),
            duration_text(attempt["ended_at"] - attempt["started_at"]) if attempt["ended_at"] else "running",
            attempt["reason"] or "",
            attempt["worker_id"],
        ]
        for attempt in attempts
    ]
    print_table(["attempt", "task", "started", "duration", "reason", "worker"], rows, "No attempts yet.")


@commands.command("logs")
@with_client
def show_logs(
    client: "Client",
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt. Default: the last.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=1, help="Number of lines, from the end.")] = None,
) -> None:
    """Print the end of the trainer's log (its standard error)."""
    text = client.text(job_path(job_id, "logs"), **_without_none(attempt=attempt, lines=lines))
    if not text:
        print_note(_empty_log_note(client.get(job_path(job_id))))
    typer.echo(text, nl=False)


@commands.command("metrics")
@with_client
def show_metrics(
    client: "Client",
    job_id: JobId,
    max_points: MaxPoints = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, as in the results file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the metrics of each step, oldest first."""
    query = _without_none(max_points=max_points)
    if as_csv:
        typer.echo(client.text(job_path(job_id, "metrics"), format="csv", **query), nl=False)
        return
    metrics = client.get(job_path(job_id, "metrics"), **query)
    if as_json:
        print_json(metrics)
        return
    rows = [[_cell_text(row.get(column)) for column in COLUMNS] for row in metrics["data"]]
    print_table([column.replace("_", " ") for column in COLUMNS], rows, "No steps yet.")


def _empty_log_note(job: dict[str, Any]) -> str:
    if is_finished(job):
        reason = "the trainer wrote no log" if job["attempts"] else "no trainer was started"
        return f"No log: the job is {job['status']} and {reason}."
    if job["attempts"]:
        return f"No log yet: the job is {job['status']} and the trainer has written no log so far."
    return f"No log yet: the job is {job['status']} and no trainer has started."


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _cell_text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
