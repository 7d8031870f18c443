"""Decorators that add the options of OPTIONS to a command and pass it a client, or the database.

    @with_client                                                    @with_database
    def show(client: "Client", name: str) -> Result:                def copy(database: "Database", ...) -> None:
        return fields(client.get(f"things/{name}"), COLUMNS)

The command returns a Result, which `with_client` prints, or prints itself and has the parameter `as_json`. `base_url`
and `data_dir` are passed, too, if they are parameters of it. Options that become a request body are defined once, as
the parameters of the function that makes the body (`with_body`).

A module of commands has no `from __future__ import annotations`: typer reads the annotations as objects. Only the type
of the first parameter is a string, because importing it is slow.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_args

import typer

from app.cli.client.references import CHECKPOINT, ResourceType, find_checkpoint, resolve_id
from app.cli.client.service_discovery import find_database, find_service
from app.cli.errors import UsageError
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
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", envvar="TUNERY_PROFILE", help="Profile that `tunery login` has stored."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OPTIONS = {  # and their defaults
    "as_json": (AsJson, False),
    "base_url": (BaseUrl, None),
    "data_dir": (DataDir, None),
    "profile": (ProfileName, None),
}


def with_client(command: Callable[Concatenate[Client, P], Result | None]) -> Callable[..., None]:
    """Pass an open client as the first argument, and full ids for abbreviated ones; print the result."""
    references = _references(command)
    own = inspect.signature(command).parameters

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        from app.cli.client.http import Client  # slow import, which `--help` does not need

        given = {name: values[name] if name in own else values.pop(name) for name in OPTIONS}
        address = find_service(given["base_url"], given["data_dir"], given["profile"])
        with contextlib.closing(Client(address)) as client:
            for name, resource_type in references.items():
                if values.get("checkpoint") is not None:  # the job of a checkpoint needs no result
                    resource_type = resource_type._replace(last_status=None)
                values[name] = _resolve(client, resource_type, values[name], values.get("job_id"))
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
    """The parameters that take the id of a job, a file, a project or a checkpoint, with the resource type of each."""
    return {
        name: argument
        for name, parameter in inspect.signature(command).parameters.items()
        for argument in get_args(parameter.annotation)[1:]
        if isinstance(argument, ResourceType)
    }


def _resolve(client: Client, resource_type: ResourceType, value: Any, job_id: Any) -> Any:
    if isinstance(value, list):
        return [resolve_id(client, resource_type, text) for text in value]
    if value is not None and resource_type.noun == CHECKPOINT.noun:
        return find_checkpoint(client, job_id, value)["id"]
    return None if value is None else resolve_id(client, resource_type, value)


def _with_options(run: Callable[..., None], command: Callable[..., Any], *options: str) -> Callable[..., None]:
    """Let typer read the parameters of the command but its first one, and `options`."""
    _, *parameters = inspect.signature(command).parameters.values()
    own = {parameter.name for parameter in parameters}
    more = [option_parameter(name, *OPTIONS[name]) for name in options if name not in own]
    return with_parameters(run, [*parameters, *more])


def option_parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def with_parameters(run: Callable[..., Any], parameters: Iterable[inspect.Parameter]) -> Callable[..., Any]:
    """Set the signature that typer and the decorators of this module read."""
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in keywords}
    return run


def with_body(make: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replace the parameter `body` of a command by the parameters of `make`, which returns it."""
    options = inspect.signature(make).parameters

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> Any:
            body = make(**{name: values.pop(name) for name in options})
            return command(*args, body=body, **values)

        parameters: list[inspect.Parameter] = []
        for each in inspect.signature(command).parameters.values():
            parameters += options.values() if each.name == "body" else [each]
        return with_parameters(run, parameters)

    return decorate


def parse_pairs(
    option: str, texts: Iterable[str] | None, form: str = "name=value", may_be_empty: bool = True
) -> dict[str, str]:
    """{name: value} of a repeatable option. Raises UsageError, also for an empty value unless it `may_be_empty`."""
    parts = {text: text.partition("=") for text in texts or ()}
    for text, (name, equals, value) in parts.items():
        if not (name and equals and (value or may_be_empty)):
            raise UsageError(f"{option} {text} is not of the form {option} {form}.")
    return {name: value for name, _, value in parts.values()}


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None, for a request body."""
    return {name: value for name, value in values.items() if value is not None}
