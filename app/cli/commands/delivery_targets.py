"""`tunery targets`: delivery targets, where finished adapters go."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import named_path
from app.cli.errors import UsageError
from app.cli.options import given, parse_pairs, with_body, with_client
from app.cli.output.results import Columns, Result, line, table
from app.cli.resource import named

if TYPE_CHECKING:
    from app.cli.client.http import Client

TARGETS = "delivery_targets"
LISTS, FLAGS = ("urls",), ("private",)  # keys of a destination that are no strings

commands = typer.Typer(no_args_is_help=True, help="Delivery targets, which get the adapters of finished jobs.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the target.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A key of the destination, such as path=/srv/adapters; repeatable."
    ),
]
CredentialsFile = Annotated[
    Path | None,
    typer.Option(
        "--credentials", help='JSON file with the credentials, such as {"api_key": "..."}; - reads standard input.'
    ),
]
ServedModelName = Annotated[str | None, typer.Option(help="One name for every adapter, each replacing the last.")]
Default = Annotated[
    bool | None, typer.Option("--default/--no-default", help="Deliver the jobs that name no target there.")
]


def _target(
    settings: Set = None,
    credentials: CredentialsFile = None,
    served_model: ServedModelName = None,
    default: Default = None,
) -> dict[str, Any]:
    body = given(credentials=_read(credentials), served_model=served_model, default=default)
    return body | ({"destination": _destination(settings)} if settings else {})


@commands.command("create")
@with_client
@with_body(_target)
def create(
    client: "Client",
    name: Name,
    kind: Annotated[str, typer.Option(help="directory, vllm, sglang, s3 or huggingface.")],
    body: dict[str, Any],
) -> Result:
    """Create a target. docs/reference/delivery-targets.md lists the keys of each kind."""
    body |= {"name": name, "destination": {"kind": kind} | body.get("destination", {})}
    target = client.post(TARGETS, body)
    note = f"Deliver a job with `tunery jobs deliver JOB --to {name}`, or create it with `--deliver-to {name}`."
    return line(target, target["id"], note)


@commands.command("list")
@with_client
def list_targets(client: "Client") -> Result:
    """List the targets of the project."""
    targets = list(client.pages(TARGETS))
    columns: Columns = {
        "name": "name",
        "kind": "kind",
        "served model": "served_model",
        "default": ("default", lambda is_default: "yes" if is_default else ""),
        "status": ("status", lambda status: status.replace("_", " ")),
        "destination": ("destination", _where),
    }
    errors = "\n".join(f"{row['name']}: {row['error']}" for row in targets if row["error"])
    return table(targets, columns, "No targets. Create one with `tunery targets create NAME --kind KIND`.", errors)


@commands.command("show")
@with_client
def show(client: "Client", name: Name) -> Result:
    """Print a target as JSON."""
    target = client.get(named_path(TARGETS, name))
    return line(target, json.dumps(target, indent=2, ensure_ascii=False))


@commands.command("update")
@with_client
@with_body(_target)
def update(
    client: "Client",
    name: Name,
    body: dict[str, Any],
) -> Result:
    """Change a target; what was not delivered yet is tried again at once."""
    path = named_path(TARGETS, name)
    if not body:
        raise UsageError("Nothing to change: give --set, --credentials, --served-model or --default.")
    if "destination" in body:
        body["destination"] = client.get(path)["destination"] | body["destination"]
    return line(client.post(path, body), f"{name} changed")


named(commands, TARGETS, Name).add_delete("Delete a target and its credentials. What was delivered stays there.")


def _destination(settings: list[str]) -> dict[str, Any]:
    destination: dict[str, Any] = {}
    for key, value in parse_pairs("--set", settings).items():
        destination[key] = value
        if key in LISTS:
            destination[key] = [part.strip() for part in value.split(",")]
        elif key in FLAGS and value in ("true", "false"):
            destination[key] = value == "true"
    return destination


def _read(path: Path | None) -> Any:
    """The credentials; never an argument, which the shell's history and the list of processes would show."""
    if path is None:
        return None
    try:
        return json.loads(sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--credentials {path}: {getattr(error, 'strerror', None) or 'it is not valid JSON'}."
        ) from error


def _where(destination: dict[str, Any]) -> str:
    for key in ("path", "bucket", "repo_id"):
        if key in destination:
            return str(destination[key])
    return ", ".join(destination.get("urls", ()))
