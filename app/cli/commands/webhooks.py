"""`tunery webhooks`: webhook endpoints and their deliveries."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import named_path
from app.cli.options import with_client
from app.cli.output.results import Columns, Result, line, table
from app.cli.resource import Resource, named

if TYPE_CHECKING:
    from app.cli.client.http import Client

ENDPOINTS = "webhook_endpoints"
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
) -> Result:
    """Create an endpoint and print its signing secret, which is shown only once."""
    endpoint = client.post(ENDPOINTS, {"name": name, "url": url, "event_types": event or DEFAULT_EVENTS})
    note = f"Save it: it is not shown again. Test the endpoint with `tunery webhooks test {endpoint['id']}`."
    return line(endpoint, endpoint["signing_secret"], note)


def _status_text(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return f"disabled: {endpoint['disabled_reason']}"
    return "failing" if endpoint["failing_since"] else "enabled"


endpoints = named(commands, ENDPOINTS, EndpointId)
endpoints.add_list(
    "List the endpoints of the project.",
    {
        "id": "id",
        "name": "name",
        "url": "url",
        "status": _status_text,
        "events": ("event_types", lambda names: ", ".join(each.removeprefix("fine_tuning.job.") for each in names)),
    },
    "No endpoints. Create one with `tunery webhooks create URL`.",
)
endpoints.add_delete("Delete an endpoint and its deliveries.")
for name, text in {
    "enable": "Enable an endpoint: pending and new events are sent.",
    "disable": "Disable an endpoint: events are not sent.",
}.items():
    endpoints.add_change(
        name, text, lambda endpoint: f"{endpoint['id']} {_status_text(endpoint)}", {"enabled": name == "enable"}
    )


@commands.command("events")
@with_client
def events(client: "Client") -> Result:
    """List the event types."""
    names = client.get("webhook_event_types")["data"]
    return line(names, "\n".join(names))


@commands.command("test")
@with_client
def send_test(
    client: "Client",
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="Event type of the sample.")] = DEFAULT_EVENTS[0],
) -> Result:
    """Send a sample event now and print the status code of the response."""
    response = client.post(named_path(ENDPOINTS, endpoint_id, "test"), {"event_type": event})
    return line(response, f"{endpoint_id} answered {response['status_code']}")


@commands.command("deliveries")
@with_client
def deliveries(
    client: "Client",
    endpoint_id: EndpointId,
    status: Annotated[
        str | None, typer.Option(help="Only deliveries with this status: pending, delivered or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of deliveries.")] = 20,
) -> Result:
    """List the deliveries to an endpoint with their results, newest first."""
    columns: Columns = {
        "id": "id",
        "event": "event_type",
        "object": ("data", lambda data: str(data.get("id", ""))),
        "status": "status",
        "attempts": "attempt_count",
        "last response": ("attempts", lambda all: str(all[0]["status_code"] or all[0]["error"]) if all else ""),
    }
    rows = client.get(_deliveries_path(endpoint_id), limit=limit, status=status)["data"]
    return table(rows, columns, "No deliveries.")


def _deliveries_path(endpoint_id: str, *names: str) -> str:
    return named_path(ENDPOINTS, endpoint_id, "deliveries", *names)


Resource(commands, _deliveries_path, DeliveryId, (EndpointId,)).add_change(
    "redeliver",
    "Send an event again with the same id.",
    lambda delivery: f"{delivery['id']} {delivery['status']}",
    action="redeliver",
)


@commands.command("rotate")
@with_client
def rotate(
    client: "Client",
    endpoint_id: EndpointId,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Also sign with the old secret for 24 hours.")] = False,
) -> Result:
    """Create a new signing secret and print it; it is shown only once."""
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    endpoint = client.post(named_path(ENDPOINTS, endpoint_id, "rotate_secret"), body)
    return line(endpoint, endpoint["signing_secret"])
