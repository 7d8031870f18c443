"""`tunery webhooks`: webhook endpoints and their deliveries."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

DEFAULT_EVENTS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]

commands = typer.Typer(no_args_is_help=True, help="Webhook endpoints, which receive the events of jobs.")
EndpointId = Annotated[str, typer.Argument(metavar="ID", help="Endpoint id; see `tunery webhooks list`.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="Delivery id; see `tunery webhooks deliveries`.")]


@commands.command("create")
@with_client
def create(
    client: "Client",
    url: Annotated[
        str, typer.Argument(metavar="URL", help="URL that receives the events; https with a public address.")
    ],
    name: Annotated[str, typer.Option(help="Name of the endpoint.")] = "cli",
    event: Annotated[
        list[str] | None,
        typer.Option(help="Event type; repeatable. Default: the job succeeded, failed or was cancelled."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create an endpoint and print its signing secret, which is shown only once."""
    endpoint = client.post("webhook_endpoints", {"name": name, "url": url, "event_types": event or DEFAULT_EVENTS})
    if as_json:
        print_json(endpoint)
        return
    print_line(endpoint["signing_secret"])
    print_note(f"Save it: it is not shown again. Test the endpoint with `tunery webhooks test {endpoint['id']}`.")


@commands.command("list")
@with_client
def list_endpoints(client: "Client", as_json: AsJson = False) -> None:
    """List the endpoints of the project."""
    endpoints = list(client.pages("webhook_endpoints", limit=100))
    if as_json:
        print_json(endpoints)
        return
    columns = ["id", "name", "url", "status", "events"]
    rows = [
        [row["id"], row["name"], row["url"], _status_text(row), _events_text(row["event_types"])] for row in endpoints
    ]
    print_table(columns, rows, "No endpoints. Create one with `tunery webhooks create URL`.")


@commands.command("events")
@with_client
def events(client: "Client") -> None:
    """List the event types."""
    for name in client.get("webhook_event_types")["data"]:
        print_line(name)


@commands.command("test")
@with_client
def send_test(
    client: "Client",
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="Event type of the sample.")] = DEFAULT_EVENTS[0],
) -> None:
    """Send a sample event now and print the status code of the response."""
    response = client.post(f"webhook_endpoints/{endpoint_id}/test", {"event_type": event})
    print_line(f"{endpoint_id} answered {response['status_code']}")


@commands.command("deliveries")
@with_client
def deliveries(
    client: "Client",
    endpoint_id: EndpointId,
    status: Annotated[
        str | None, typer.Option(help="Only deliveries with this status: pending, delivered or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of deliveries.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the deliveries to an endpoint with their results, newest first."""
    filters = {} if status is None else {"status": status}
    rows = client.get(f"webhook_endpoints/{endpoint_id}/deliveries", limit=limit, **filters)["data"]
    if as_json:
        print_json(rows)
        return
    columns = ["id", "event", "object", "status", "attempts", "last response"]
    print_table(columns, [_cells(row) for row in rows], "No deliveries.")


@commands.command("redeliver")
@with_client
def redeliver(client: "Client", endpoint_id: EndpointId, delivery_id: DeliveryId) -> None:
    """Send an event again with the same id."""
    delivery = client.post(f"webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver")
    print_line(f"{delivery['id']} {delivery['status']}")


@commands.command("rotate")
@with_client
def rotate(
    client: "Client",
    endpoint_id: EndpointId,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Also sign with the old secret for 24 hours.")] = False,
) -> None:
    """Create a new signing secret and print it; it is shown only once."""
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    print_line(client.post(f"webhook_endpoints/{endpoint_id}/rotate_secret", body)["signing_secret"])


@commands.command("enable")
@with_client
def enable(client: "Client", endpoint_id: EndpointId) -> None:
    """Enable an endpoint: pending and new events are sent."""
    _set_enabled(client, endpoint_id, True)


@commands.command("disable")
@with_client
def disable(client: "Client", endpoint_id: EndpointId) -> None:
    """Disable an endpoint: events are not sent."""
    _set_enabled(client, endpoint_id, False)


@commands.command("delete")
@with_client
def delete(client: "Client", endpoint_id: EndpointId) -> None:
    """Delete an endpoint and its deliveries."""
    client.delete(f"webhook_endpoints/{endpoint_id}")
    print_line(f"{endpoint_id} deleted")


def _set_enabled(client: "Client", endpoint_id: str, enabled: bool) -> None:
    print_line(f"{endpoint_id} {_status_text(client.post(f'webhook_endpoints/{endpoint_id}', {'enabled': enabled}))}")


def _status_text(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return f"disabled: {endpoint['disabled_reason']}"
    return "failing" if endpoint["failing_since"] else "enabled"


def _events_text(names: list[str]) -> str:
    return ", ".join(name.removeprefix("fine_tuning.job.") for name in names)


def _cells(delivery: dict[str, Any]) -> list[str]:
    last_attempt = delivery["attempts"][0] if delivery["attempts"] else None
    return [
        delivery["id"],
        delivery["event_type"],
        str(delivery["data"].get("id", "")),
        delivery["status"],
        str(delivery["attempt_count"]),
        str(last_attempt["status_code"] or last_attempt["error"]) if last_attempt else "",
    ]
