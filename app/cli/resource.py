"""The commands that are alike for every resource of the API: list, show, delete, and a change of one object.

    targets = named(commands, "delivery_targets", Name)
    targets.add_list("List the targets of the project.", {"name": "name", "status": "status"}, "No targets.")
    targets.add_delete("Delete a target and its credentials.")

An argument that is resolved to an id (`JobId`, `ProjectId`) and one that is the id or name itself are both allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from app.cli.client.references import JobId, job_path, named_path
from app.cli.options import option_parameter, with_client, with_parameters
from app.cli.output.results import Columns, Result, fields, line, table

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json


class Resource(NamedTuple):
    commands: typer.Typer
    path: Callable[..., str]  # of the collection for the values of `parents`, of an object for one more
    argument: Any = str  # the annotated type of the argument that names an object
    parents: tuple[Any, ...] = ()  # those of the arguments that name the object it belongs to

    def add_list(
        self, text: str, columns: Columns, empty: str, name: str = "list", page_size: int | None = 100
    ) -> None:
        """Add a command that lists all objects; `text` is its help. `page_size` None: the list has one page."""

        def run(client: Client, *names: str) -> Result:
            return table(client.pages(self.path(*names), page_size), columns, empty.format(*names))

        self._add(name, text, run, self.parents)

    def add_show(self, text: str, columns: Columns, name: str = "show") -> None:
        self._add(name, text, lambda client, *names: fields(client.get(self.path(*names)), columns))

    def add_delete(self, text: str, name: str = "delete", done: str = "deleted") -> None:
        self._add(name, text, lambda client, *names: line(client.delete(self.path(*names)), f"{names[-1]} {done}"))

    def add_change(
        self,
        name: str,
        text: str,
        shown: Callable[[Json], str],
        body: Mapping[str, Any] | None = None,
        action: str | None = None,
    ) -> None:
        """Add a command that posts `body` to the object, or to an action below it, and prints what `shown` returns."""

        def change(client: Client, *names: str) -> Result:
            changed = client.post("/".join(filter(None, (self.path(*names), action))), body)
            return line(changed, shown(changed))

        self._add(name, text, change)

    def _add(
        self, name: str, text: str, command: Callable[..., Result], arguments: tuple[Any, ...] | None = None
    ) -> None:
        """Add a command with these arguments; default: those that name an object."""
        annotations = (*self.parents, self.argument) if arguments is None else arguments

        def run(client: Client, /, **names: str) -> Result:
            return command(client, *names.values())

        parameters = [option_parameter(f"name_{number}", each, ...) for number, each in enumerate(annotations)]
        with_parameters(run, [option_parameter("client", None), *parameters])
        self.commands.command(name, help=text)(with_client(run))


def part_of_job(commands: typer.Typer, kind: str, argument: Any = str) -> Resource:
    """What belongs to a job, such as its exports."""
    return Resource(commands, lambda job_id, *names: job_path(job_id, kind, *names), argument, (JobId,))


def named(commands: typer.Typer, collection: str, argument: Any = str) -> Resource:
    """Objects whose name may contain any characters."""
    return Resource(commands, partial(named_path, collection), argument)
