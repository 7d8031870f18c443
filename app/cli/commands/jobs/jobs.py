"""`tunery jobs`: create, list, show, watch, change and end fine-tuning jobs."""

import math
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.job_request import build_update_body
from app.cli.client.references import JobId
from app.cli.client.service_discovery import job_path
from app.cli.client.transfers import uploaded_files
from app.cli.commands.jobs.progress import raise_unless_succeeded, watch_or_detach
from app.cli.job_options import (
    Metadata,
    Priority,
    with_job_body,
)
from app.cli.options import AsJson, with_client
from app.cli.output.console import (
    duration_text,
    print_fields,
    print_json,
    print_line,
    print_note,
    print_table,
    size_text,
    time_text,
)
from app.cli.output.progress import Losses, numbers_text, status_text
from app.domain.jobs.states import training_seconds

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")

EVENTS_PER_PAGE = 1000
MAIN_SETTINGS = (  # shown first
    "r",
    "alpha",
    "dropout",
    "bits",
    "type",
    "n_epochs",
    "batch_size",
    "learning_rate",
)
Follow = Annotated[bool, typer.Option("--watch", help="Watch the job until it has finished.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of jobs, newest first.")]


def unix_seconds(text: str) -> int:
    """Parse a time. Raises BadParameter, which typer prints with the option's name."""
    try:
        return int(text) if text.isdecimal() else math.floor(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        allowed = "seconds since 1970, or a date such as 2026-11-27 or 2026-11-27T09:30:00+01:00"
        raise typer.BadParameter(f"{text!r} is not a time; use {allowed}") from None


CreatedAfter = Annotated[
    int | None,
    typer.Option(
        parser=unix_seconds,
        metavar="TIME",
        help="Only jobs created after this time: seconds since 1970, or a date (local time).",
    ),
]
CreatedBefore = Annotated[
    int | None, typer.Option(parser=unix_seconds, metavar="TIME", help="Only jobs created before this time.")
]


@commands.command("create")
@with_client
@with_job_body(
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "method",
    "n_epochs",
    "batch_size",
    "learning_rate",
    "lora.r",
    "lora.alpha",
    "lora.dropout",
    "lora.target_modules",
    "metadata",
    "priority",
    "urgent",
    "worker_labels",
    "deliver_to",
)
def create(client: "Client", body: dict[str, Any], follow: Follow = False, as_json: AsJson = False) -> None:
    """Create a job and print its id. Omitted settings are resolved by the server from the data and the base model."""
    create_and_watch(client, "fine_tuning/jobs", body, follow, as_json)


@commands.command("list")
@with_client
def list_jobs(
    client: "Client",
    limit: Limit = 20,
    status: Annotated[list[str] | None, typer.Option(help="Only jobs with this status; repeatable.")] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    all_projects: Annotated[
        bool, typer.Option("--all-projects", help="Jobs of all projects; requires an admin key.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the project's jobs, newest first."""
    filters = {"status": status, "created_after": created_after, "created_before": created_before}
    query = {name: value for name, value in filters.items() if value}
    path = "organization/jobs" if all_projects else "fine_tuning/jobs"
    jobs, has_more = client.first_items(path, limit, max_page=100, **query)
    if has_more:
        print_note(f"Shows the newest {limit} jobs; use --limit to show more.")
    if as_json:
        print_json(jobs)
        return
    rows = [
        [
            job["id"],
            *([job["project_id"]] if all_projects else []),
            status_text(job),
            _step_text(job),
            time_text(job["created_at"]),
            job["model"],
            job.get("fine_tuned_model") or "",
        ]
        for job in jobs
    ]
    columns = ["id", *(["project"] if all_projects else []), "status", "step", "created", "model", "fine-tuned model"]
    empty = "No jobs match." if query else "No jobs. Create one with `tunery jobs create`."
    print_table(columns, rows, empty)


@commands.command("get")
@with_client
def get(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    job = client.get(job_path(job_id))
    if as_json:
        print_json(job)
    else:
        print_fields(_fields(job))


@commands.command("watch")
@with_client
def watch_job(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Watch a job until it has finished. Ctrl-C stops watching and does not affect the job."""
    raise_unless_succeeded(watch_or_detach(client, job_id, as_json))


@commands.command("set")
@with_client
def set_job(
    client: "Client",
    job_id: JobId,
    priority: Priority = None,
    metadata: Metadata = None,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Remove all metadata.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change the priority of an unfinished job, or a job's metadata. New metadata replaces all existing metadata."""
    job = client.post(job_path(job_id), build_update_body(priority, metadata or [], no_metadata))
    if as_json:
        print_json(job)
    else:
        print_line(job["id"])
        print_note(f"priority {job['priority']}, metadata: {_pairs_text(job['metadata'] or {}) or 'none'}")


@commands.command("cancel")
@with_client
def cancel(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job. Progress since its last checkpoint is lost."""
    _post_action(client, job_id, "cancel", as_json)


@commands.command("pause")
@with_client
def pause(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Pause a job after its current step. Its progress is saved and its GPU is released."""
    _post_action(client, job_id, "pause", as_json)


@commands.command("resume")
@with_client
def resume(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again. It continues from its saved progress."""
    _post_action(client, job_id, "resume", as_json)


@commands.command("events")
@with_client
def events(
    client: "Client",
    job_id: JobId,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of events, newest. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the events of a job, oldest first."""
    newest_first, has_more = client.first_items(job_path(job_id, "events"), limit, EVENTS_PER_PAGE)
    shown = newest_first[::-1]
    if as_json:
        print_json(shown)
    else:
        rows = [[time_text(event["created_at"]), event["level"], event["message"]] for event in shown]
        print_table(["time", "level", "message"], rows, "No events yet.")
    if has_more:
        print_note(f"Shows the newest {len(shown)} events; omit --limit to show all.")


def create_and_watch(client: "Client", path: str, body: dict[str, Any], follow: bool, as_json: bool) -> None:
    """Upload the files of the body, create the job and print it; with `follow` until it has finished."""
    with uploaded_files(client, body) as sent:
        job = client.post(path, sent)
    for warning in job.get("warnings", ()):
        print_note(f"Warning: {warning['message']}.")
    if follow:
        if not as_json:
            print_line(job["id"])
        raise_unless_succeeded(watch_or_detach(client, job["id"], as_json))
    elif as_json:
        print_json(job)
    else:
        print_line(job["id"])
        print_note(f"Watch it with `tunery jobs watch {job['id']}`.")


def _post_action(client: "Client", job_id: str, action: str, as_json: bool) -> None:
    job = client.post(job_path(job_id, action))
    if as_json:
        print_json(job)
    else:
        print_line(f"{job['id']}  {job['status']}")


def _fields(job: dict[str, Any]) -> list[tuple[str, str]]:
    method = job.get("method") or {}
    method_type = method.get("type") or "supervised"
    hyperparameters = (method.get(method_type) or {}).get("hyperparameters") or {}
    error, adapter = job.get("error") or {}, job.get("adapter") or {}
    return [
        ("id", job["id"]),
        ("status", status_text(job)),
        ("error", f"{error['code']}: {error['message']}" if error.get("code") else ""),
        ("warnings", "\n".join(each["message"] for each in job.get("warnings") or [])),
        ("progress", numbers_text(job, Losses())),
        ("model", job["model"] + (f" (requested as {job['model_alias']})" if job.get("model_alias") else "")),
        ("fine-tuned model", job.get("fine_tuned_model") or ""),
        ("adapter", f"{size_text(adapter['bytes'])}, SHA-256 {adapter['sha256']}" if adapter.get("sha256") else ""),
        ("training file", job["training_file"]),
        ("validation file", job.get("validation_file") or ""),
        ("result files", ", ".join(job.get("result_files") or [])),
        ("method", method_type),
        ("hyperparameters", _pairs_text(hyperparameters)),
        ("lora", _pairs_text(job.get("lora") or {})),
        ("quantization", _pairs_text(job["quantization"]) if job.get("quantization") else "none (16-bit LoRA)"),
        ("seed", str(job["seed"])),
        ("metadata", _pairs_text(job.get("metadata") or {})),
        ("trained tokens", f"{job['trained_tokens']:,}" if job.get("trained_tokens") else ""),
        ("created", time_text(job["created_at"])),
        ("finished", time_text(job["finished_at"])),
        ("training time", duration_text(training_seconds(job))),
    ]


def _pairs_text(values: dict[str, Any]) -> str:
    names = [name for name in MAIN_SETTINGS if name in values]
    names += sorted(values.keys() - set(names))
    return ", ".join(f"{name} {item_text(values[name])}" for name in names if values[name] is not None)


def item_text(value: Any) -> str:
    """A value as text: lists joined by +, floats shortened, booleans as in JSON."""
    if isinstance(value, list):
        return "+".join(map(item_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"  # as in JSON and as `--set` takes it
    return f"{value:g}" if isinstance(value, float) else str(value)


def _step_text(job: dict[str, Any]) -> str:
    progress = job.get("progress") or {}
    return f"{progress['step']}/{progress['total_steps']}" if progress.get("total_steps") else ""
