"""Commands that follow a job: `watch` and what others wait by, its attempts, log and metrics."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.client.references import JobId, job_path
from app.cli.errors import CliError, ServiceUnreachable
from app.cli.options import with_client
from app.cli.output.console import duration_text, print_note, time_text
from app.cli.output.progress import is_finished, job_view, next_steps
from app.cli.output.results import Columns, Result, table
from app.cli.resource import part_of_job

if TYPE_CHECKING:
    from app.cli.client.http import Client

Json = dict[str, Any]
T = TypeVar("T")
POLL_SECONDS = 1.0  # between two requests for a job that changes with every step
LONG_POLL_SECONDS = 20  # how long one request waits for a change
RETRY_TIMEOUT_SECONDS = 120.0  # a restart of the server takes seconds, of the machine a minute
MAX_EARLIER_EVENTS = 50  # shown at the start of a watch
EVENTS_PER_PAGE = 100
commands = typer.Typer()

COLUMNS = ("step", "train_loss", "full_valid_loss", "learning_rate", "tokens_per_second")
MaxPoints = Annotated[
    int | None, typer.Option(min=2, help="Maximum number of steps, selected to preserve the shape of the loss curve.")
]


def watch_or_detach(client: "Client", job_id: str, as_json: bool = False) -> None:
    """Watch a job and print the next steps. Ctrl-C prints how to continue watching and does not affect the job."""
    try:
        job = watch(client, job_id, as_json)
    except KeyboardInterrupt:
        print_note(
            f"\nStopped watching; the job continues. Watch it again with `tunery jobs watch {job_id}`, "
            f"or cancel it with `tunery jobs cancel {job_id}`."
        )
        raise
    if not as_json:
        print_note(next_steps(job))


def watch(client: "Client", job_id: str, as_json: bool = False) -> Json:
    """Show a job until it has finished, and return it. Raises CliError if it has not succeeded."""
    job = client.get(job_path(job_id))  # without retries: a wrong id or URL is reported at once
    with job_view(as_json) as view:
        for job, events in follow(client, job_id):
            for event in events:
                view.event(event)
            view.job(job)
    raise_unless_succeeded(job)
    return job


def follow(client: "Client", job_id: str) -> Iterator[tuple[Json, list[Json]]]:
    """Yield the job and its new events, oldest first, after each change, until it has finished.

    Uses long polling; a server without it is polled every POLL_SECONDS.
    """
    last_event_id: str | None = None
    etag: str | None = None
    while True:
        # Read the job before its events: a finished job has no further events.
        job, etag = _retry_while_unreachable(partial(client.get_if_changed, job_path(job_id), etag, LONG_POLL_SECONDS))
        if job is not None:
            events = _retry_while_unreachable(partial(new_events, client, job_id, last_event_id))
            last_event_id = events[-1]["id"] if events else last_event_id
            yield job, events
            if is_finished(job):
                return
        time.sleep(POLL_SECONDS)


def new_events(client: "Client", job_id: str, last_event_id: str | None) -> list[Json]:
    """The events after `last_event_id`, oldest first (the server lists newest first)."""
    newest_first = client.pages(job_path(job_id, "events"), EVENTS_PER_PAGE)
    if last_event_id is not None:
        return list(itertools.takewhile(lambda event: event["id"] != last_event_id, newest_first))[::-1]
    newest = list(itertools.islice(newest_first, MAX_EARLIER_EVENTS + 1))
    if len(newest) > MAX_EARLIER_EVENTS:
        print_note(f"Earlier events are not shown; `tunery jobs events {job_id}` shows all.")
    return newest[:MAX_EARLIER_EVENTS][::-1]


def raise_unless_succeeded(job: Json) -> None:
    """Raises CliError with the status and the error of a job that has not succeeded."""
    if job["status"] == "succeeded":
        return
    error = job.get("error") or {}
    reason = f" ({error['code']}): {error.get('message')}" if error.get("code") else "."
    raise CliError(f"{job['id']} {job['status']}{reason}")


def _retry_while_unreachable(request: Callable[[], T]) -> T:
    """Repeat a request for RETRY_TIMEOUT_SECONDS, so that a watch continues after a restart of the server."""
    unreachable_since: float | None = None
    while True:
        try:
            return request()
        except ServiceUnreachable as error:
            if unreachable_since is None:
                unreachable_since = time.monotonic()
                print_note(f"{error} Retrying for {RETRY_TIMEOUT_SECONDS:.0f} seconds.")
            if time.monotonic() - unreachable_since > RETRY_TIMEOUT_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


part_of_job(commands, "attempts").add_list(
    "List a job's attempts, oldest first, with the reason for which each ended.",
    {
        "attempt": "attempt",
        "task": ("kind", lambda kind: "training" if kind == "train" else "validation of the files"),
        "started": ("started_at", time_text),
        "duration": lambda attempt: (
            duration_text(attempt["ended_at"] - attempt["started_at"]) if attempt["ended_at"] else "running"
        ),
        "reason": "reason",
        "worker": "worker_id",
    },
    "No attempts yet.",
    name="attempts",
    page_size=None,
)


@commands.command("logs")
@with_client
def show_logs(
    client: "Client",
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt. Default: the last.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=1, help="Number of lines, from the end.")] = None,
) -> Result:
    """Print the end of the trainer's log (its standard error)."""
    text = client.text(job_path(job_id, "logs"), attempt=attempt, lines=lines)
    if not text:
        print_note(_empty_log_note(client.get(job_path(job_id))))
    return Result(text, lambda: typer.echo(text, nl=False))


@commands.command("metrics")
@with_client
def show_metrics(
    client: "Client",
    job_id: JobId,
    max_points: MaxPoints = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, as in the results file.")] = False,
) -> Result:
    """Show the metrics of each step, oldest first."""
    if as_csv:
        text = client.text(job_path(job_id, "metrics"), format="csv", max_points=max_points)
        return Result(text, lambda: typer.echo(text, nl=False))
    metrics = client.get(job_path(job_id, "metrics"), max_points=max_points)
    columns: Columns = {name.replace("_", " "): (name, _cell_text) for name in COLUMNS}
    return Result(metrics, table(metrics["data"], columns, "No steps yet.").show)


def _empty_log_note(job: dict[str, Any]) -> str:
    if is_finished(job):
        reason = "the trainer wrote no log" if job["attempts"] else "no trainer was started"
        return f"No log: the job is {job['status']} and {reason}."
    if job["attempts"]:
        return f"No log yet: the job is {job['status']} and the trainer has written no log so far."
    return f"No log yet: the job is {job['status']} and no trainer has started."


def _cell_text(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
