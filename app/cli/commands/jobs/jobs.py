"""`tunery jobs`: create, plan, clone, list, show, compare, change and end fine-tuning jobs."""

import math
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JOB, REFERENCE_FORMS, JobId, job_path
from app.cli.client.transfers import uploaded_files
from app.cli.commands.files import lines_text, print_warnings
from app.cli.commands.jobs.progress import watch_or_detach
from app.cli.errors import CommandExit
from app.cli.job_options import update_body, with_job_body
from app.cli.options import AsJson, with_body, with_client
from app.cli.output.console import duration_text, print_json, print_line, print_note, size_text, time_text
from app.cli.output.progress import Losses, numbers_text, status_text
from app.cli.output.results import Columns, Result, fields, line, print_rows, table
from app.cli.resource import Resource
from app.domain.error_text.json_text import counted
from app.domain.jobs.states import training_seconds

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

commands = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")

SECTIONS = ("data", "config", "environment", "result")  # of a comparison
DIGEST_CHARACTERS = 12
MAX_CHARACTERS = 60
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
@with_job_body()
def create(client: "Client", body: dict[str, Any], follow: Follow = False, as_json: AsJson = False) -> None:
    """Create a job and print its id. Omitted settings are resolved by the server from the data and the base model."""
    _create_and_watch(client, "fine_tuning/jobs", body, follow, as_json)


@commands.command("clone")
@with_client
@with_job_body(is_clone=True)
def clone(
    client: "Client", body: dict[str, Any], job_id: JobId, follow: Follow = False, as_json: AsJson = False
) -> None:
    """Create a job with the settings of another and print its id. Options override the copied settings."""
    _create_and_watch(client, job_path(job_id, "clone"), body, follow, as_json)


@commands.command("plan")
@with_client
@with_job_body()
def plan(client: "Client", body: dict[str, Any]) -> Result:
    """Estimate a job: tokens, steps, memory and time on each device. Exits with 1 if no device has enough memory."""
    with uploaded_files(client, body, keep=False) as sent:
        estimate = client.post("fine_tuning/jobs/plan", sent)
    has_room = estimate["verdict"] != "no_device_fits"
    return Result(estimate, lambda: _print_estimate(estimate), None if has_room else typer.Exit(CommandExit.FAILED))


@commands.command("list")
@with_client
def list_jobs(
    client: "Client",
    limit: Limit = 20,
    status: Annotated[list[str] | None, typer.Option(help="Only jobs with this status; repeatable.")] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    group: Annotated[str | None, typer.Option(help="Only jobs of the group of this id.")] = None,
    all_projects: Annotated[
        bool, typer.Option("--all-projects", help="Jobs of all projects; requires an admin key.")
    ] = False,
) -> Result:
    """List the project's jobs, newest first."""
    times = {"created_after": created_after, "created_before": created_before}
    query: dict[str, Any] = {"status": status, "group": group} | times
    path = "organization/jobs" if all_projects else "fine_tuning/jobs"
    jobs, has_more = client.first_items(path, limit, **query)
    if has_more:
        print_note(f"Shows the newest {counted(limit, 'job')}; use --limit to show more.")
    columns: Columns = {
        "id": "id",
        "name": "user_provided_suffix",
        **({"project": "project_id"} if all_projects else {}),
        "status": status_text,
        "step": ("progress", _step_text),
        "created": ("created_at", time_text),
        "model": "model",
        "evaluation": ("evaluation", lambda one: _evaluation_text(one, "brief")),
        "fine-tuned model": "fine_tuned_model",
    }
    return table(
        jobs, columns, "No jobs match." if any(query.values()) else "No jobs. Create one with `tunery jobs create`."
    )


@commands.command("diff")
@with_client
def diff(
    client: "Client",
    job_id: JobId,
    other: Annotated[str, typer.Argument(help=f"Job to compare with: {REFERENCE_FORMS}.", metavar="OTHER"), JOB],
    show_all: Annotated[bool, typer.Option("--all", help="Show equal values too.")] = False,
) -> Result:
    """Show the differences of two jobs: data, configuration, environment, result."""
    comparison = client.get(job_path(job_id, "diff"), **{"with": other})
    rows = [
        row | {"section": section}
        for section in SECTIONS
        for row in comparison[section]["values"]
        if show_all or row["differs"]
    ]
    same = [section for section in SECTIONS if not comparison[section]["differences"]]

    def show() -> None:
        print_note(f"left: {job_id}, right: {other}")
        columns: Columns = {
            "": "section",
            "value": "path",
            "left": lambda row: _short_text(row["left"]),
            "right": lambda row: _short_text(row["right"]),
        }
        print_rows(rows, columns, "No differences.")
        if same and rows:
            print_note(f"No differences in: {', '.join(same)}.")

    return Result(comparison, show)


@commands.command("watch")
@with_client
def watch_job(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """Watch a job until it has finished. Ctrl-C stops watching and does not affect the job."""
    watch_or_detach(client, job_id, as_json)


@commands.command("set")
@with_client
@with_body(update_body)
def set_job(client: "Client", job_id: JobId, body: dict[str, Any]) -> Result:
    """Change the priority of an unfinished job, or the name or the metadata of a job.

    New metadata replaces all existing metadata. The names of models that exist stay.
    """
    job = client.post(job_path(job_id), body)
    pairs = _pairs_text(job["metadata"] or {}) or "none"
    name = job["user_provided_suffix"] or "none"
    return line(job, job["id"], f"name {name}, priority {job['priority']}, metadata: {pairs}")


def estimate_text(estimate: "Json") -> str | None:
    """Time and memory on the fastest device with enough memory; None if there is none."""
    fitting = [device for device in estimate["devices"] if device["fits"]]
    if not fitting:
        return None
    best = min(fitting, key=lambda device: device["seconds"])
    note = " (rough estimate)" if best["basis"] == "formula" else ""
    return f"{duration_text(best['seconds'])} and {size_text(best['memory']['peak'])} on {best['name']}{note}"


def _create_and_watch(client: "Client", path: str, body: dict[str, Any], follow: bool, as_json: bool) -> None:
    """Upload the files of the body, create the job and print it; with `follow` until it has finished."""
    with uploaded_files(client, body) as sent:
        job = client.post(path, sent)
    for warning in job.get("warnings", ()):
        print_note(f"Warning: {warning['message']}.")
    if follow:
        if not as_json:
            print_line(job["id"])
        watch_or_detach(client, job["id"], as_json)
    elif as_json:
        print_json(job)
    else:
        print_line(job["id"])
        print_note(f"Watch it with `tunery jobs watch {job['id']}`.")


def _print_estimate(estimate: "Json") -> None:
    print_line(estimate["message"])
    if estimate.get("model_alias"):
        print_line(f"{estimate['model_alias']} is an alias: the job trains {estimate['model']}.")
    print_warnings(estimate.get("warnings", []))
    tokens = f"{estimate['tokens_per_epoch']:,} per epoch, {estimate['labelled_tokens_per_epoch']:,} of them trained"
    about: Columns = {
        "examples": ("examples", "{:,}".format),
        "tokens": ("trained_tokens", lambda count: f"{tokens}; {count:,} in total"),
        "steps": ("total_steps", "{:,}".format),
        **{name: (name, lines_text) for name in ("cut", "empty", "masked")},
        "evaluation": ("evaluation", _evaluation_plan_text),
    }
    fields(estimate, about).show()
    columns: Columns = {
        "device": "name",
        "fits": ("fits", lambda fits: "yes" if fits else "no"),
        "peak": ("memory", lambda memory: size_text(memory["peak"])),
        "memory": ("memory_bytes", size_text),
        "time": ("seconds", duration_text),
        "basis": "basis",
    }
    print_rows(estimate["devices"], columns, "No training worker is running.")


def _evaluation_plan_text(plan: "Json") -> str:
    """after the training: 12 rows, 24 answers, at most 0:40"""
    if plan["rows"] is None:
        return "after the training; a worker counts its rows"
    seconds = plan["estimated_seconds"]
    time = "" if seconds is None else f", at most {duration_text(seconds)}"
    return f"after the training: {counted(plan['rows'], 'row')}, {counted(2 * plan['rows'], 'answer')}{time}"


def _pairs_text(values: dict[str, Any]) -> str:
    names = [name for name in MAIN_SETTINGS if name in values]
    names += sorted(values.keys() - set(names))
    return ", ".join(f"{name} {item_text(values[name])}" for name in names if values[name] not in (None, [], {}))


def item_text(value: Any) -> str:
    """A value as text: lists joined by +, floats shortened, booleans as in JSON."""
    if isinstance(value, list):
        return "+".join(map(item_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"  # as in JSON and as `--set` takes it
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short_text(value: Any) -> str:
    """Shorten digests and long lists for the table; `--json` prints them in full."""
    if value is None:
        return "-"
    text = item_text(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:DIGEST_CHARACTERS]
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def _evaluation_text(evaluation: "Json", key: str) -> str:
    """The result of the newest evaluation, as `text` or `brief`, or else its status."""
    return str(evaluation["headline"][key] if evaluation.get("headline") else evaluation["status"])


def _step_text(progress: "Json") -> str:
    return f"{progress['step']}/{progress['total_steps']}" if progress.get("total_steps") else ""


resource = Resource(commands, job_path, JobId)
resource.add_show(
    "Show one job.",
    {
        "id": "id",
        "name": "user_provided_suffix",
        "status": status_text,
        "error": ("error", lambda error: f"{error['code']}: {error['message']}" if error.get("code") else ""),
        "warnings": ("warnings", lambda warnings: "\n".join(each["message"] for each in warnings)),
        "progress": lambda job: numbers_text(job, Losses()),
        "model": lambda job: job["model"] + (f" (requested as {job['model_alias']})" if job.get("model_alias") else ""),
        "fine-tuned model": "fine_tuned_model",
        "evaluation": ("evaluation", lambda one: _evaluation_text(one, "text")),
        "adapter": ("adapter", lambda adapter: f"{size_text(adapter['bytes'])}, SHA-256 {adapter['sha256']}"),
        "training file": "training_file",
        "validation file": "validation_file",
        "result files": ("result_files", ", ".join),
        "method": ("method", lambda method: str(method["type"])),
        "hyperparameters": ("method", lambda method: _pairs_text(method[method["type"]]["hyperparameters"])),
        "lora": ("lora", _pairs_text),
        "quantization": lambda job: _pairs_text(job.get("quantization") or {}) or "none (16-bit LoRA)",
        "seed": "seed",
        "metadata": ("metadata", _pairs_text),
        "trained tokens": ("trained_tokens", "{:,}".format),
        "created": ("created_at", time_text),
        "finished": ("finished_at", time_text),
        "training time": lambda job: duration_text(training_seconds(job)),
    },
    name="get",
)
resource.add_delete("Delete a job that has ended, with its models, adapters, exports and evaluations.")
for name, text in {
    "cancel": "Cancel a job. Progress since its last checkpoint is lost.",
    "pause": "Pause a job after its current step. Its progress is saved, and its worker is free for other jobs.",
    "resume": "Queue a paused job again. It continues from its saved progress.",
}.items():
    resource.add_change(name, text, lambda job: f"{job['id']}  {status_text(job)}", action=name)
