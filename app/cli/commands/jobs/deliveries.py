"""`tunery jobs deliver`: deliver adapters to delivery targets."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JobId, JobWithResult
from app.cli.client.service_discovery import ID_PATTERN, job_path
from app.cli.errors import CliError, NotFoundError
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_line, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

POLL_SECONDS = 1.0
MAX_LISTED = 100

commands = typer.Typer()


@commands.command("deliver")
@with_client
def deliver(
    client: "Client",
    job_id: JobWithResult,
    to: Annotated[str, typer.Option("--to", help="Name of the target; see `tunery targets list`.")],
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint id. Default: the final adapter.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return without waiting for the delivery.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deliver an adapter, and wait until its first attempt has ended."""
    body = {"target": to} | ({"checkpoint": checkpoint} if checkpoint else {})
    delivery = client.post(job_path(job_id, "deliveries"), body)
    while not detach and delivery["status"] == "pending" and delivery["error"] is None:
        time.sleep(POLL_SECONDS)
        delivery = client.get(job_path(job_id, "deliveries", delivery["id"]))
    if as_json:
        print_json(delivery)
    elif delivery["error"] is None:
        print_line(f"{delivery['id']} {delivery['status']}{_verdict(delivery)}")
    if delivery["error"] is not None:
        raise CliError(f"The delivery is {delivery['status']}: {delivery['error']}")


@commands.command("deliveries")
@with_client
def list_deliveries(client: "Client", job_id: JobId, as_json: AsJson = False) -> None:
    """List the deliveries of a job, newest first."""
    deliveries = list(client.pages(job_path(job_id, "deliveries"), MAX_LISTED))
    if as_json:
        print_json(deliveries)
        return
    columns = ["id", "target", "status", "served model", "check", "error"]
    rows = [
        [row["id"], row["target"], row["status"], row["served_model"], _verdict(row).strip(" ,"), row["error"] or ""]
        for row in deliveries
    ]
    print_table(columns, rows, f"No deliveries. Make one with `tunery jobs deliver {job_id} --to TARGET`.")


@commands.command("withdraw")
@with_client
def withdraw(
    client: "Client",
    job_id: JobId,
    delivery_id: Annotated[str, typer.Argument(help="Delivery id; see `tunery jobs deliveries`.", metavar="DELIVERY")],
) -> None:
    """Remove the adapter from the target; the model stays."""
    if not ID_PATTERN.fullmatch(delivery_id):
        raise NotFoundError(f"No such delivery: {delivery_id!r}; see `tunery jobs deliveries {job_id}`.")
    client.delete(job_path(job_id, "deliveries", delivery_id))
    print_line(f"{delivery_id} is being withdrawn")


def _verdict(delivery: dict[str, Any]) -> str:
    check = delivery["check"]
    if check is None:
        return ""
    return f", check: {check['verdict']}" + (f" ({check['reason']})" if check["reason"] else "")
