"""`tunery queue` and `tunery workers`: running and queued jobs with expected times, and the workers."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client.references import named_path
from app.cli.options import with_client
from app.cli.output.console import duration_text, print_note, size_text, time_text
from app.cli.output.results import Columns, Result, print_rows, table

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

commands = typer.Typer()

Resumed = Annotated[
    str | None, typer.Option("--resume", metavar="WORKER", help="Put this worker back into service; id or name.")
]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of queued jobs.")]


@commands.command("queue")
@with_client
def show(client: "Client", limit: Limit = 50) -> Result:
    """Show running and queued jobs with position and expected start, and unfinished evaluations.

    Jobs of other projects are shown only as totals, unless you use an admin key.
    """
    queue = client.get("queue", limit=limit)
    rows = [
        *({"status": "running"} | job for job in queue["running"]),
        *({"status": "queued"} | job for job in queue["waiting"]),
        *queue["evaluations"],
    ]
    columns: Columns = {
        "job": "id",
        "status": "status",
        "position": "position",
        "start": lambda row: time_text(row["expected_start"] if "expected_start" in row else row["started_at"]),
        "duration": _duration_text,
        "type": _type_text,
        "reason": _reason_text,
    }
    others, workers = queue["others"], queue["workers"]

    def show() -> None:
        print_note(f"{workers['busy']} of {workers['alive']} training workers are busy.")
        print_rows(rows, columns, "This project has no running or queued jobs.")
        if others["running"] or others["waiting"]:
            print_note(f"Other projects: {others['running']} running, {others['waiting']} queued.")

    return Result(queue, show)


@commands.command("workers")
@with_client
def show_workers(client: "Client", resume: Resumed = None) -> Result:
    """List the live workers with device, models, labels and current job or evaluation.

    With --resume: put a worker back into service that lost its GPU in three attempts in a row. Requires an admin key.
    """
    if resume is not None:
        client.post(named_path("organization/workers", resume, "resume"))
    columns: Columns = {
        "worker": lambda worker: worker["name"] or worker["id"],
        "queue": "queue",
        "status": "status",
        "device": ("device", _device_text),
        "models": ("models", ", ".join),
        "labels": ("labels", ", ".join),
        "job": lambda worker: worker["job_id"] or worker["evaluation_id"] or "",
    }
    return table(client.pages("workers", None), columns, "No live workers.")


def _duration_text(row: "Json") -> str:
    """The remaining time of a running job, else the estimate."""
    if "expected_finish" in row:
        return f"{duration_text(max(0, row['expected_finish'] - int(time.time())))} left"
    return duration_text(row["planned_seconds"] if "planned_seconds" in row else row["estimated_seconds"])


def _type_text(row: "Json") -> str:
    if "answers" in row:
        return "evaluation"
    return "urgent" if row["urgent"] else f"priority {row['priority']}" if row["priority"] else ""


def _reason_text(row: "Json") -> str:
    if "answers" in row:
        is_started = row["answers"] is not None
        return (
            f"{row['answers']} of {row['total_answers']} answers" if is_started else f"of {row['fine_tuning_job_id']}"
        )
    if "gives_way" in row:
        return "is being preempted" if row["gives_way"] else ""
    return "waiting for free disk space" if row.get("phase") == "waiting_for_storage" else row["waiting_for"] or ""


def _device_text(device: "Json") -> str:
    if device["name"] is None:
        return ""
    count = f"{device['count']} x " if device["count"] > 1 else ""
    text = f"{count}{device['name']}, {size_text(device['memory_bytes'])}"
    if device.get("slot_bytes") is None:  # a server of an earlier release has no slots
        return text
    return f"1 of {device['slots_per_gpu']} slots ({size_text(device['slot_bytes'])}) of {text}"
