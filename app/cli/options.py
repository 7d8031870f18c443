"""What every command that reaches something has in common: `--base-url` and `--data-dir`, and what they lead to.

    @with_client                            @with_database
    def show(client: "Client", ...): ...    def add(database: "Database", ...): ...

A module of commands has no `from __future__ import annotations`: typer needs its options as objects, and only the first
parameter's type, which costs an import, stays a string.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_args

import typer

from app.cli.client.references import Kind, find_id
from app.cli.client.service_discovery import find_database, find_service

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.cli.client.http import Client

P = ParamSpec("P")

BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", envvar="TUNERY_BASE_URL", help="Where the service is, such as http://127.0.0.1:8000."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="TUNERY_DATA_DIR", help="The data directory of a `tunery up` on this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_client(command: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """Put an open client in the place of a command's first parameter, and whole ids in that of what stands for them."""
    kinds = _kinds(command)

    @functools.wraps(command)
    def run(*args: Any, base_url: str | None, data_dir: Path | None, **values: Any) -> None:
        from app.cli.client.http import Client  # not for `--help`: the HTTP client costs more than everything else

        client = Client(find_service(base_url, data_dir))
        with contextlib.closing(client):
            for name, kind in kinds.items():
                values[name] = _whole(client, kind, values[name])
            command(client, *args, **values)

    return _with_options(run, command, base_url=BaseUrl, data_dir=DataDir)


def with_database(command: Callable[Concatenate[Database, P], None]) -> Callable[..., None]:
    """Put the operator's database in the place of a command's first parameter."""

    @functools.wraps(command)
    def run(*args: Any, data_dir: Path | None, **values: Any) -> None:
        from app.cli.client.database import Database  # not for `--help`, and not for a client without a database

        action = f"{command.__module__.rpartition('.')[2]}.{command.__name__}"
        command(Database(find_database(data_dir), action), *args, **values)

    return _with_options(run, command, data_dir=DataDir)


def _kinds(command: Callable[..., None]) -> dict[str, Kind]:
    """Parameters that take the id of a job or a file."""
    found = {
        name: [one for one in get_args(parameter.annotation)[1:] if isinstance(one, Kind)]
        for name, parameter in inspect.signature(command).parameters.items()
    }
    return {name: kinds[0] for name, kinds in found.items() if kinds}


def _whole(client: Client, kind: Kind, value: Any) -> Any:
    if isinstance(value, list):
        return [find_id(client, kind, one) for one in value]
    return find_id(client, kind, value)


def _with_options(run: Callable[..., None], command: Callable[..., None], **options: Any) -> Callable[..., None]:
    """typer reads a function's signature: the command's own without its first parameter, and these options."""
    own = list(inspect.signature(command).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in options.items()
    ]
    parameters = [*own, *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
