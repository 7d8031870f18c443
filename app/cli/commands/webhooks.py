"""`tunery webhooks`: who is told of events, and what came of it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

ENDED = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]

commands = typer.Typer(no_args_is_help=True, help="Webhook endpoints: who is told when a job moves.")
EndpointId = Annotated[str, typer.Argument(metavar="ID", help="As `webhooks list` has it.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="As `webhooks deliveries` has it.")]


@commands.command("create")
@with_client
def create(
    client: "Client",
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to; https, and a public address.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "cli",
    event: Annotated[list[str] | None, typer.Option(help="An event type; again for more. Absent: a job ended.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an endpoint and print its signing secret, this once."""
    made = client.post("webhook_endpoints", {"name": name, "url": url, "event_types": event or ENDED})
    if as_json:
        print_json(made)
        return
    print_line(made["signing_secret"])
    print_note(f"Keep it: it is not shown again. `tunery webhooks test {made['id']}` tries the endpoint.")


@commands.command("list")
@with_client
def list_endpoints(client: "Client", as_json: AsJson = False) -> None:
    """List the endpoints of the project."""
    found = list(client.pages("webhook_endpoints", limit=100))
    if as_json:
        print_json(found)
        return
    columns = ["id", "name", "url", "state", "events"]
    rows = [[one["id"], one["name"], one["url"], _state(one), _events(one["event_types"])] for one in found]
    print_table(columns, rows, "No endpoints. `tunery webhooks create URL` makes one.")


@commands.command("events")
@with_client
def events(client: "Client") -> None:
    """List the event types there are."""
    for name in client.get("webhook_event_types")["data"]:
        print_line(name)


@commands.command("test")
@with_client
def send_test(
    client: "Client",
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="The event type of the sample.")] = ENDED[0],
) -> None:
    """Send a sample now and say what the endpoint answered."""
    answered = client.post(f"webhook_endpoints/{endpoint_id}/test", {"event_type": event})
    print_line(f"{endpoint_id} answered {answered['status_code']}")


@commands.command("deliveries")
@with_client
def deliveries(
    client: "Client",
    endpoint_id: EndpointId,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent to an endpoint, newest first, and what came of it."""
    wanted = {} if status is None else {"status": status}
    found = client.get(f"webhook_endpoints/{endpoint_id}/deliveries", limit=limit, **wanted)["data"]
    if as_json:
        print_json(found)
        return
    columns = ["id", "event", "of", "status", "tries", "last answer"]
    print_table(columns, [_row(one) for one in found], "Nothing was sent to it yet.")


@commands.command("redeliver")
@with_client
def redeliver(client: "Client", endpoint_id: EndpointId, delivery_id: DeliveryId) -> None:
    """Send an event again, under the same id."""
    again = client.post(f"webhook_endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver")
    print_line(f"{again['id']} {again['status']}")


@commands.command("rotate")
@with_client
def rotate(
    client: "Client",
    endpoint_id: EndpointId,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="The old secret signs too for 24 hours.")] = False,
) -> None:
    """Make a new signing secret and print it, this once."""
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    print_line(client.post(f"webhook_endpoints/{endpoint_id}/rotate_secret", body)["signing_secret"])


@commands.command("enable")
@with_client
def enable(client: "Client", endpoint_id: EndpointId) -> None:
    """Send what has waited for it, and what comes."""
    _switch(client, endpoint_id, True)


@commands.command("disable")
@with_client
def disable(client: "Client", endpoint_id: EndpointId) -> None:
    """Send it nothing for now."""
    _switch(client, endpoint_id, False)


@commands.command("delete")
@with_client
def delete(client: "Client", endpoint_id: EndpointId) -> None:
    """Remove an endpoint with its deliveries."""
    client.delete(f"webhook_endpoints/{endpoint_id}")
    print_line(f"{endpoint_id} deleted")


def _switch(client: "Client", endpoint_id: str, enabled: bool) -> None:
    print_line(f"{endpoint_id} {_state(client.post(f'webhook_endpoints/{endpoint_id}', {'enabled': enabled}))}")


def _state(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return f"disabled: {endpoint['disabled_reason']}"
    return "failing" if endpoint["failing_since"] else "enabled"


def _events(names: list[str]) -> str:
    return ", ".join(name.removeprefix("fine_tuning.job.") for name in names)


def _row(delivery: dict[str, Any]) -> list[str]:
    of, tries = delivery["data"].get("id", ""), delivery["attempt_count"]
    return [delivery["id"], delivery["event_type"], str(of), delivery["status"], str(tries), _last(delivery)]


def _last(delivery: dict[str, Any]) -> str:
    if not delivery["attempts"]:
        return ""
    last = delivery["attempts"][0]
    return str(last["status_code"] or last["error"])
