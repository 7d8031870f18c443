"""`tunery queue` and `tunery workers`: what waits and when it may start, and who is at work."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import Missing
from app.cli.options import AsJson, with_client, with_database
from app.cli.output.console import duration_text, print_json, print_line, print_note, print_table, size_text, time_text

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.cli.client.http import Client

commands = typer.Typer()

Limit = Annotated[int, typer.Option(min=1, max=1000, help="Of the waiting jobs, the first so many.")]


@commands.command("queue")
@with_client
def show(client: "Client", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Show what runs and what waits, with position and expected start. Others' jobs are counts, but for admin keys."""
    found = client.get("queue", limit=limit)
    if as_json:
        print_json(found)
        return
    others, workers = found["others"], found["workers"]
    print_note(f"{workers['busy']} of {workers['alive']} GPU workers are busy.")
    rows = [[job["id"], "running", "", time_text(job["started_at"]), _until(job["expected_finish"]),
             _kind(job), "gives way" if job["gives_way"] else ""] for job in found["running"]]  # fmt: skip
    rows += [[job["id"], "waiting", str(job["position"]), time_text(job["expected_start"]),
              duration_text(job["planned_seconds"]), _kind(job), _note(job)]
             for job in found["waiting"]]  # fmt: skip
    print_table(["job", "is", "place", "start", "takes", "kind", "note"], rows, "No job of this project runs or waits.")
    if others["running"] or others["waiting"]:
        print_note(f"Of other projects {others['running']} run and {others['waiting']} wait.")


@commands.command("workers")
@with_client
def workers(client: "Client", as_json: AsJson = False) -> None:
    """List the workers that are alive: device, models, labels, and what they have."""
    found = client.get("workers")["data"]
    if as_json:
        print_json(found)
        return
    rows = [
        [worker["name"] or worker["id"], worker["queue"], worker["status"], _device(worker["device"]),
         ", ".join(worker["models"]), ", ".join(worker["labels"]), worker["job_id"] or ""]
        for worker in found
    ]  # fmt: skip
    print_table(["worker", "queue", "is", "device", "models", "labels", "job"], rows, "No worker is alive.")


@commands.command("allow-urgent")
@with_database
def allow_urgent(
    database: "Database",
    project: Annotated[str, typer.Argument(help="The project's name.", metavar="PROJECT")],
    forbid: Annotated[bool, typer.Option("--forbid", help="Take the permission back.")] = False,
) -> None:
    """Let the jobs of a project be `urgent`: they go before everybody's (operator)."""
    from app.db.access import keys

    with database.transaction() as session:
        found = keys.get_project(session, project)
        if found is None:
            raise Missing(f"No project is called {project!r}.")
        found.may_be_urgent = not forbid
    print_line(f"{project}: urgent jobs are {'refused' if forbid else 'allowed'}")


def _until(moment: int) -> str:
    """What is left."""
    return duration_text(max(0, moment - int(time.time())))


def _note(job: dict[str, Any]) -> str:
    return "waits for free disk space" if job.get("phase") == "waiting_for_storage" else job["waiting_for"] or ""


def _kind(job: dict[str, Any]) -> str:
    return "urgent" if job["urgent"] else f"priority {job['priority']}" if job["priority"] else ""


def _device(device: dict[str, Any]) -> str:
    if device["name"] is None:
        return ""
    many = f"{device['count']} x " if device["count"] > 1 else ""
    return f"{many}{device['name']}, {size_text(device['memory_bytes'])}"
