"""Decorators that add `--json`, `--base-url` and `--data-dir` to a command and pass it a client, or the database.

    @with_client                                                    @with_database
    def show(client: "Client", name: str) -> Result:                def copy(database: "Database", ...) -> None:
        return fields(client.get(f"things/{name}"), COLUMNS)

The command returns a Result, which `with_client` prints, or prints itself and has the parameter `as_json`. `base_url`
and `data_dir` are passed, too, if they are parameters of it.

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
from app.cli.client.service_discovery import find_database, find_service
from app.cli.output.results import Result

if TYPE_CHECKING:
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
OPTIONS = {"as_json": (AsJson, False), "base_url": (BaseUrl, None), "data_dir": (DataDir, None)}  # and their defaults


def with_client(command: Callable[Concatenate[Client, P], Result | None]) -> Callable[..., None]:
    """Pass an open client as the first argument, and full ids for abbreviated ones; print the result."""
    references = _references(command)
    own = inspect.signature(command).parameters

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        from app.cli.client.http import Client  # slow import, which `--help` does not need

        given = {name: values[name] if name in own else values.pop(name) for name in OPTIONS}
        with contextlib.closing(Client(find_service(given["base_url"], given["data_dir"]))) as client:
            for name, resource_type in references.items():
                if values.get("checkpoint") is not None:  # the job of a checkpoint needs no result
                    resource_type = resource_type._replace(last_status=None)
                values[name] = _resolve(client, resource_type, values[name])
            result = command(client, *args, **values)
            if result is not None:
                result.print(given["as_json"])

    return _with_options(run, command, *OPTIONS)


def with_database(command: Callable[Concatenate[Database, P], None]) -> Callable[..., None]:
    """Pass the operator's database as the first argument: for commands that need the server's host."""

    @functools.wraps(command)
    def run(*args: Any, data_dir: Path | None, **values: Any) -> None:
        command(open_database(f"{command.__module__.rpartition('.')[2]}.{command.__name__}", data_dir), *args, **values)

    return _with_options(run, command, "data_dir")


def open_database(action: str, data_dir: Path | None) -> Database:
    """The operator's database; `action` names the command in the audit log."""
    from app.cli.client.database import Database  # slow import, which `--help` and remote clients do not need

    return Database(find_database(data_dir), action)


def _references(command: Callable[..., Any]) -> dict[str, ResourceType]:
    """The parameters that take the id of a job, a file or a project, with the resource type of each."""
    return {
        name: argument
        for name, parameter in inspect.signature(command).parameters.items()
        for argument in get_args(parameter.annotation)[1:]
        if isinstance(argument, ResourceType)
    }


def _resolve(client: Client, resource_type: ResourceType, value: Any) -> Any:
    if isinstance(value, list):
        return [resolve_id(client, resource_type, text) for text in value]
    return None if value is None else resolve_id(client, resource_type, value)


def _with_options(run: Callable[..., None], command: Callable[..., Any], *options: str) -> Callable[..., None]:
    """Set the signature that typer reads: that of the command without its first parameter, plus `options`."""
    parameters = list(inspect.signature(command).parameters.values())[1:]
    own = {parameter.name for parameter in parameters}
    for name in options:
        annotation, default = OPTIONS[name]
        if name not in own:
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
