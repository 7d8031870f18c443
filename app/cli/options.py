"""Decorators that add `--base-url` and `--data-dir` to a command and pass it a client, the database or both ways of
administration.

    @with_client                            @with_database                              @with_administration
    def show(client: "Client", ...): ...    def copy(database: "Database", ...): ...    def add(admin: "...", ...): ...

A module of commands has no `from __future__ import annotations`: typer reads the annotations as objects. Only the type
of the first parameter is a string, because importing it is slow.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_args

import typer

from app.cli.client.references import ResourceType, resolve_id
from app.cli.client.service_discovery import (
    administers_over_http,
    find_database,
    find_encryption_keys,
    find_layout,
    find_service,
)

if TYPE_CHECKING:
    from app.cli.administration.records import Administration
    from app.cli.client.database import Database
    from app.cli.client.http import Client

P = ParamSpec("P")

BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", envvar="TUNERY_BASE_URL", help="URL of the service, such as http://127.0.0.1:8000."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="TUNERY_DATA_DIR", help="Data directory of `tunery up` on this machine."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_client(command: Callable[Concatenate[Client, P], None]) -> Callable[..., None]:
    """Pass an open client as the first argument, and full ids for abbreviated ones."""
    resource_types = _reference_parameters(command)

    @functools.wraps(command)
    def run(*args: Any, base_url: str | None, data_dir: Path | None, **values: Any) -> None:
        from app.cli.client.http import Client  # slow import, which `--help` does not need

        client = Client(find_service(base_url, data_dir))
        with contextlib.closing(client):
            for name, resource_type in resource_types.items():
                if values.get("checkpoint") is not None:  # the job of a checkpoint needs no result
                    resource_type = resource_type._replace(last_status=None)
                values[name] = _resolve_ids(client, resource_type, values[name])
            command(client, *args, **values)

    return _with_options(run, command, base_url=BaseUrl, data_dir=DataDir)


def with_database(command: Callable[Concatenate[Database, P], None]) -> Callable[..., None]:
    """Pass the operator's database as the first argument: for commands that need the server's host."""

    @functools.wraps(command)
    def run(*args: Any, data_dir: Path | None, **values: Any) -> None:
        command(_open_database(command, data_dir), *args, **values)

    return _with_options(run, command, data_dir=DataDir)


def with_administration(command: Callable[Concatenate[Administration, P], None]) -> Callable[..., None]:
    """Pass the administration over HTTP or on the database, by the address and the key that are available."""

    @functools.wraps(command)
    def run(*args: Any, base_url: str | None, data_dir: Path | None, **values: Any) -> None:
        if administers_over_http(base_url, data_dir):
            from app.cli.administration.http import HttpAdministration
            from app.cli.client.http import Client

            with contextlib.closing(Client(find_service(base_url, data_dir))) as client:
                command(HttpAdministration(client), *args, **values)
        else:
            from app.cli.administration.database import DatabaseAdministration

            database, keys = _open_database(command, data_dir), find_encryption_keys(data_dir)
            admin_key_file = find_layout(data_dir).admin_key
            command(DatabaseAdministration(database, keys, admin_key_file), *args, **values)

    return _with_options(run, command, base_url=BaseUrl, data_dir=DataDir)


def _open_database(command: Callable[..., None], data_dir: Path | None) -> Database:
    from app.cli.client.database import Database  # slow import, which `--help` and remote clients do not need

    action = f"{command.__module__.rpartition('.')[2]}.{command.__name__}"
    return Database(find_database(data_dir), action)


def _reference_parameters(command: Callable[..., None]) -> dict[str, ResourceType]:
    """The parameters that take the id of a job or a file, with the resource type of each."""
    return {
        name: argument
        for name, parameter in inspect.signature(command).parameters.items()
        for argument in get_args(parameter.annotation)[1:]
        if isinstance(argument, ResourceType)
    }


def _resolve_ids(client: Client, resource_type: ResourceType, value: Any) -> Any:
    if isinstance(value, list):
        return [resolve_id(client, resource_type, text) for text in value]
    return resolve_id(client, resource_type, value)


def _with_options(run: Callable[..., None], command: Callable[..., None], **options: Any) -> Callable[..., None]:
    """Set the signature that typer reads: that of the command without its first parameter, plus `options`."""
    own = list(inspect.signature(command).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in options.items()
    ]
    parameters = [*own, *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
