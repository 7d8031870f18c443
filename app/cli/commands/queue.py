"""`tunery queue` and `tunery workers`: running and queued jobs with expected times, and the workers."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, with_administration, with_client
from app.cli.output.console import duration_text, print_json, print_line, print_note, print_table, size_text, time_text

if TYPE_CHECKING:
    from app.cli.administration.records import Administration
    from app.cli.client.http import Client

commands = typer.Typer()

Limit = Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of queued jobs.")]


@commands.command("queue")
@with_client
def show(client: "Client", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Show running and queued jobs with position and expected start, and unfinished evaluations.

    Jobs of other projects are shown only as totals, unless you use an admin key.
    """
    queue = client.get("queue", limit=limit)
    if as_json:
        print_json(queue)
        return
    others, workers = queue["others"], queue["workers"]
    print_note(f"{workers['busy']} of {workers['alive']} GPU workers are busy.")
    rows = [
        [
            job["id"],
            "running",
            "",
            time_text(job["started_at"]),
            _remaining_text(job["expected_finish"]),
            _type_text(job),
            "is being preempted" if job["gives_way"] else "",
        ]
        for job in queue["running"]
    ]
    rows += [
        [
            job["id"],
            "queued",
            str(job["position"]),
            time_text(job["expected_start"]),
            duration_text(job["planned_seconds"]),
            _type_text(job),
            _reason_text(job),
        ]
        for job in queue["waiting"]
    ]
    rows += [
        [
            evaluation["id"],
            evaluation["status"],
            "",
            time_text(evaluation["started_at"]),
            duration_text(evaluation["estimated_seconds"]),
            "evaluation",
            _answers_text(evaluation),
        ]
        for evaluation in queue["evaluations"]
    ]
    columns = ["job", "status", "position", "start", "duration", "type", "reason"]
    print_table(columns, rows, "This project has no running or queued jobs.")
    if others["running"] or others["waiting"]:
        print_note(f"Other projects: {others['running']} running, {others['waiting']} queued.")


@commands.command("workers")
@with_client
def list_workers(client: "Client", as_json: AsJson = False) -> None:
    """List the live workers with device, models, labels and current job or evaluation."""
    workers = client.get("workers")["data"]
    if as_json:
        print_json(workers)
        return
    rows = [
        [
            worker["name"] or worker["id"],
            worker["queue"],
            worker["status"],
            _device_text(worker["device"]),
            ", ".join(worker["models"]),
            ", ".join(worker["labels"]),
            worker["job_id"] or worker["evaluation_id"] or "",
        ]
        for worker in workers
    ]
    print_table(["worker", "queue", "status", "device", "models", "labels", "job"], rows, "No live workers.")


@commands.command("allow-urgent")
@with_administration
def allow_urgent(
    admin: "Administration",
    project: Annotated[str, typer.Argument(help="Name or id of the project.", metavar="PROJECT")],
    forbid: Annotated[bool, typer.Option("--forbid", help="Revoke the permission.")] = False,
) -> None:
    """Allow a project to create `urgent` jobs, which start before all others. For administrators."""
    admin.allow_urgent(project, not forbid)
    print_line(f"{project}: urgent jobs are {'refused' if forbid else 'allowed'}")


def _remaining_text(finish_seconds: int) -> str:
    """The time until `finish_seconds` (Unix time)."""
    return duration_text(max(0, finish_seconds - int(time.time())))


def _reason_text(job: dict[str, Any]) -> str:
    return "waiting for free disk space" if job.get("phase") == "waiting_for_storage" else job["waiting_for"] or ""


def _answers_text(evaluation: dict[str, Any]) -> str:
    if evaluation["answers"] is None:
        return f"of {evaluation['fine_tuning_job_id']}"
    return f"{evaluation['answers']} of {evaluation['total_answers']} answers"


def _type_text(job: dict[str, Any]) -> str:
    return "urgent" if job["urgent"] else f"priority {job['priority']}" if job["priority"] else ""


def _device_text(device: dict[str, Any]) -> str:
    if device["name"] is None:
        return ""
    count = f"{device['count']} x " if device["count"] > 1 else ""
    text = f"{count}{device['name']}, {size_text(device['memory_bytes'])}"
    if device.get("slot_bytes") is None:  # a server of an earlier release has no slots
        return text
    return f"1 of {device['slots_per_gpu']} slots ({size_text(device['slot_bytes'])}) of {text}"
