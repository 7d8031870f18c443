"""`tunery status`: the state of the whole service on one screen, for operators."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import ServiceUnreachable
from app.cli.options import AsJson, with_client
from app.cli.output.console import (
    duration_text,
    print_checks,
    print_fields,
    print_json,
    print_line,
    print_note,
    print_table,
    size_text,
    time_text,
)
from app.domain.operations.checks import Check, check_remedy, checks_of_service

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

MAX_PROJECTS = 10
UNHEALTHY = 1  # the exit code, for scripts
STATES = {"running": "running", "queued": "queued", "validating_files": "validating", "paused": "paused"}


@commands.command("status")
@with_client
def show(
    client: "Client",
    as_json: AsJson = False,
    failed: Annotated[
        int, typer.Option(min=0, max=20, help="Maximum number of failed jobs, deliveries and webhooks.")
    ] = 5,
) -> None:
    """Show whether the service is healthy, and what to do if it is not. Requires an admin key.

    Workers, queue, jobs and deliveries that failed within the last day, storage by project, last backup. The exit code
    is 1 if there is a problem.
    """
    try:
        status = client.get("organization/status")
    except ServiceUnreachable:
        reasons = client.failed_checks().items()
        print_checks([Check(name, "problem", reason, check_remedy(name)) for name, reason in reasons], print_note)
        raise
    if as_json:
        print_json(status)
    else:
        _print(status, failed)
    if not status["healthy"]:
        raise typer.Exit(UNHEALTHY)


def _print(status: dict[str, Any], failed_limit: int) -> None:
    backup = status["last_backup"]
    print_line("The service is healthy." if status["healthy"] else "The service has problems.")
    print_checks(checks_of_service(status))
    print_line("")
    print_fields(
        [
            ("queue", ", ".join(f"{status['queue'][state]} {name}" for state, name in STATES.items())),
            ("oldest due", ", ".join(map(_oldest_text, status["queue"]["oldest"]))),
            ("deliveries", _deliveries_text(status["deliveries"])),
            ("disk", _disk_text(status["storage"])),
            ("last backup", time_text(backup["finished_at"]) if backup else "none"),
        ]
    )
    print_line("\nWorkers")
    rows = [[w["name"] or w["id"], w["queue"], w["status"], w["job_id"] or ""] for w in status["workers"]]
    print_table(["worker", "queue", "status", "job"], rows, "No worker is alive.")
    _print_failed(status["failed_jobs"], failed_limit)
    failed, retried = status["deliveries"]["failed"], status["deliveries"].get("retried", [])
    _print_section("Deliveries that failed within the last day", map(_delivery_text, failed[:failed_limit]))
    _print_section("Deliveries that are tried again", map(_delivery_text, retried[:failed_limit]))
    failing = status.get("webhooks", {}).get("failing", [])
    _print_section("Webhook endpoints that accept no events", map(_endpoint_text, failing[:failed_limit]))
    print_line("\nStorage by project")
    projects = [[each["project"], size_text(each["stored_bytes"])] for each in status["storage"]["projects"]]
    print_table(["project", "stored"], projects[:MAX_PROJECTS], "No projects.")


def _print_failed(failures: dict[str, Any], limit: int) -> None:
    if not failures["total"]:
        print_line("\nNo job failed within the last day.")
        return
    codes = ", ".join(f"{count} x {code}" for code, count in failures["by_code"].items())
    print_line(f"\nFailed within the last day: {failures['total']} ({codes})")
    for job in failures["data"][:limit]:
        print_line(f"  {job['id']}  {job['project']}  {time_text(job['finished_at'])}  {job['code']}")
        print_line(f"    {job['message'] or ''}")
        if job["remedy"]:
            print_line(f"    -> {job['remedy']}")


def _print_section(title: str, texts: Iterable[str]) -> None:
    """Print the texts below a title; nothing without any."""
    for number, text in enumerate(texts):
        print_line(text if number else f"\n{title}\n{text}")


def _delivery_text(delivery: dict[str, Any]) -> str:
    text = f"  {delivery['job_id']}  {delivery['project']}  {delivery['target']}  {delivery['model']}"
    again = delivery.get("next_attempt_at")
    return f"{text}\n    {delivery['error'] or ''}" + (f"\n    -> tried again at {time_text(again)}" if again else "")


def _endpoint_text(endpoint: dict[str, Any]) -> str:
    since = f"failing since {time_text(endpoint['failing_since'])}" if endpoint["failing_since"] else ""
    disabled = f"disabled: {endpoint['disabled_reason']}" if endpoint["disabled_reason"] else ""
    owner = endpoint["project"] or "the operator's"
    return f"  {endpoint['id']}  {owner}  {endpoint['name']}  {disabled or since}"


def _oldest_text(job: dict[str, Any]) -> str:
    return f"{job['id']} ({job['status']}) for {duration_text(job['waiting_seconds'])}"


def _deliveries_text(deliveries: dict[str, Any]) -> str:
    text = f"{deliveries['pending']} pending, {deliveries['withdrawing']} to be withdrawn"
    if deliveries["due"]:
        text += f", {deliveries['due']} due for {duration_text(deliveries['oldest_due_seconds'])}"
    return text


def _disk_text(storage: dict[str, Any]) -> str:
    if storage["disk_bytes"] is None:
        return "the data directory cannot be read"
    return f"{size_text(storage['disk_free_bytes'])} of {size_text(storage['disk_bytes'])} are free"
