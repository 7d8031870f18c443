"""Commands that follow a job: `watch` and what others wait by, its attempts, log and metrics."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.client.references import JobId, job_path
from app.cli.errors import CliError, CommandExit, ServiceUnreachable
from app.cli.options import AsJson, with_client
from app.cli.output.console import duration_text, print_json_line, print_line, print_note, time_text
from app.cli.output.progress import curve, is_finished, job_view, next_steps
from app.cli.output.results import Columns, Result, line, table
from app.cli.resource import part_of_job
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from app.cli.client.http import Client

Json = dict[str, Any]
T = TypeVar("T")
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Print what follows, too, until the job has finished or Ctrl-C.")
]
POLL_SECONDS = 1.0  # between two requests for a job that changes with every step
LONG_POLL_SECONDS = 20  # how long one request waits for a change
RETRY_TIMEOUT_SECONDS = 120.0  # a restart of the server takes seconds, of the machine a minute
CURVE_CHARACTERS = 40
ENDS = {"failed": CommandExit.FAILED, "cancelled": CommandExit.CANCELLED}
MAX_EARLIER_EVENTS = 50  # shown at the start of a watch
EVENTS_PER_PAGE = 100
ALL_EVENTS_PER_PAGE = 1000
LOG_OVERLAP_CHARACTERS = 2_000  # by which the end of one reading of a log is found in the next
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
    """Show a job until it has finished, and return it. Raises CliError if it has failed, Exit if it was cancelled."""
    job = client.get(job_path(job_id))  # without retries: a wrong id or URL is reported at once
    with job_view(as_json) as view:
        for job, events in follow(client, job_id):
            for event in events:
                view.event(event)
            view.job(job)
    if job["status"] == "cancelled":
        print_note(f"{job['id']} was cancelled.")
        raise typer.Exit(CommandExit.CANCELLED)
    if job["status"] == "failed":
        error = job.get("error") or {}
        reason = f" ({error['code']}): {error.get('message')}" if error.get("code") else "."
        raise CliError(f"{job['id']} failed{reason}")
    return job


def follow(client: "Client", job_id: str, max_earlier: int | None = None) -> Iterator[tuple[Json, list[Json]]]:
    """Yield the job and its new events, oldest first, after each change, until it has finished.

    Uses long polling; a server without it is polled every POLL_SECONDS.
    """
    last_event_id: str | None = None
    for job in changes(client, job_id):  # read before its events: a finished job has no further events
        events = _retry_while_unreachable(partial(new_events, client, job_id, last_event_id, max_earlier))
        last_event_id = events[-1]["id"] if events else last_event_id
        yield job, events


def changes(client: "Client", job_id: str) -> Iterator[Json]:
    """Yield the job after each change, until it has finished."""
    etag: str | None = None
    while True:
        job, etag = _retry_while_unreachable(partial(client.get_if_changed, job_path(job_id), etag, LONG_POLL_SECONDS))
        if job is not None:
            yield job
            if is_finished(job):
                return
        time.sleep(POLL_SECONDS)


def new_events(client: "Client", job_id: str, last_event_id: str | None, max_earlier: int | None = None) -> list[Json]:
    """The events after `last_event_id`, oldest first (the server lists newest first); at first the newest ones."""
    newest_first = client.pages(job_path(job_id, "events"), EVENTS_PER_PAGE)
    if last_event_id is not None:
        return list(itertools.takewhile(lambda event: event["id"] != last_event_id, newest_first))[::-1]
    max_earlier = max_earlier or MAX_EARLIER_EVENTS
    newest = list(itertools.islice(newest_first, max_earlier + 1))
    if len(newest) > max_earlier:
        print_note(f"Earlier events are not shown; `tunery jobs events {job_id}` shows all.")
    return newest[:max_earlier][::-1]


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


@commands.command("wait")
@with_client
def wait(
    client: "Client",
    job_id: JobId,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Exit with 1 if the job has failed, with 5 if it was cancelled.")
    ] = False,
) -> Result:
    """Wait until a job has ended, and print its status. Exits with 0, unless --exit-status is given.

    Example: tunery jobs wait @last --exit-status && tunery eval @last --file heldout.jsonl
    """
    job = client.get(job_path(job_id))  # without retries: a wrong id or URL is reported at once
    for changed in () if is_finished(job) else changes(client, job_id):
        job = changed
    code = ENDS.get(job["status"]) if exit_status else None
    shown = line(job, f"{job['id']}  {job['status']}")
    return Result(job, shown.show, typer.Exit(code) if code else None)


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


part_of_job(commands, "checkpoints").add_list(
    "List the kept checkpoints of a job, newest first. `--checkpoint` of other commands takes the step or the id.",
    {
        "id": "id",
        "step": ("step_number", str),
        "best": ("best", lambda is_best: "best" if is_best else ""),
        "train loss": lambda row: _loss_text(row["metrics"], "train_loss"),
        "validation loss": lambda row: _loss_text(row["metrics"], "full_valid_loss", "valid_loss"),
        "created": ("created_at", time_text),
    },
    "{} has no checkpoints yet.",
    name="checkpoints",
)


@commands.command("events")
@with_client
def show_events(
    client: "Client",
    job_id: JobId,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of events, newest. Default: all.")] = None,
    follow_job: Follow = False,
    as_json: AsJson = False,
) -> None:
    """List the events of a job, oldest first."""
    if follow_job:
        for _, new in follow(client, job_id, limit):
            for event in new:
                text = f"{time_text(event['created_at'])}  {event['level']:<5}  {event['message']}"
                print_json_line(event) if as_json else print_line(text)
        return
    newest_first, has_more = client.first_items(job_path(job_id, "events"), limit, ALL_EVENTS_PER_PAGE)
    columns: Columns = {"time": ("created_at", time_text), "level": "level", "message": "message"}
    note = f"Shows the newest {counted(len(newest_first), 'event')}; omit --limit to show all." if has_more else ""
    table(newest_first[::-1], columns, "No events yet.", note).print(as_json)


@commands.command("logs")
@with_client
def show_logs(
    client: "Client",
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt. Default: the last.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=1, help="Number of lines, from the end.")] = None,
    follow_job: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Print the end of the trainer's log (its standard error). The server has it every ten seconds."""
    path, shown = job_path(job_id, "logs"), ""
    for _ in follow(client, job_id) if follow_job else ():
        lines = None if shown else lines
        text = _retry_while_unreachable(partial(client.text, path, attempt=attempt, lines=lines))
        if part := _new_part(shown, text):
            print_json_line(part) if as_json else typer.echo(part, nl=False)
        shown = text
    if follow_job:
        return
    text = client.text(path, attempt=attempt, lines=lines)
    if not text:
        print_note(_empty_log_note(client.get(job_path(job_id))))
    Result(text, lambda: typer.echo(text, nl=False)).print(as_json)


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
    losses = [row["train_loss"] for row in metrics["data"] if row.get("train_loss") is not None]
    note = f"train loss {losses[0]:.3f} {curve(losses, CURVE_CHARACTERS)} {losses[-1]:.3f}" if losses else ""
    return Result(metrics, table(metrics["data"], columns, "No steps yet.", note).show)


def _new_part(shown: str, text: str) -> str:
    """What a log has after `shown`: the server keeps only its end, and a new attempt has a log of its own."""
    end = shown[-LOG_OVERLAP_CHARACTERS:]
    return text[text.rindex(end) + len(end) :] if end and end in text else text


def _loss_text(metrics: Json, *names: str) -> str:
    """The first of these that was measured."""
    return next((f"{metrics[name]:.4f}" for name in names if metrics.get(name) is not None), "")


def _empty_log_note(job: dict[str, Any]) -> str:
    if is_finished(job):
        reason = "the trainer wrote no log" if job["attempts"] else "no trainer was started"
        return f"No log: the job is {job['status']} and {reason}."
    if job["attempts"]:
        return f"No log yet: the job is {job['status']} and the trainer has written no log so far."
    return f"No log yet: the job is {job['status']} and no trainer has started."


def _cell_text(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
