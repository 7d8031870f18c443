"""The commands that are alike for every resource of the API: list, show, delete, and a change of one object.

    targets = Resource(commands, "delivery_targets", Name)
    targets.add_list("List the targets of the project.", {"name": "name", "status": "status"}, "No targets.")
    targets.add_delete("Delete a target and its credentials.")

An argument that is resolved to an id (`JobId`, `ProjectId`) and one that is the id or name itself are both allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from app.cli.client.references import named_path
from app.cli.options import with_client
from app.cli.output.results import Columns, Result, fields, line, table

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json


class Resource(NamedTuple):
    commands: typer.Typer
    path: str  # of the collection
    argument: Any  # the annotated type of the argument that names an object

    def add_list(self, text: str, columns: Columns, empty: str, name: str = "list") -> None:
        """Add a command that lists all objects; `text` is its help."""

        def run(client: Client) -> Result:
            return table(client.pages(self.path), columns, empty)

        self.commands.command(name, help=text)(with_client(run))

    def add_show(self, text: str, columns: Columns, name: str = "show") -> None:
        self._add(name, text, lambda client, named: fields(client.get(named_path(self.path, named)), columns))

    def add_delete(self, text: str, name: str = "delete", done: str = "deleted") -> None:
        def delete(client: Client, named: str) -> Result:
            return line(client.delete(named_path(self.path, named)), f"{named} {done}")

        self._add(name, text, delete)

    def add_change(
        self,
        name: str,
        text: str,
        shown: Callable[[Json], str],
        body: Mapping[str, Any] | None = None,
        action: str | None = None,
    ) -> None:
        """Add a command that posts `body` to the object, or to an action below it, and prints what `shown` returns."""

        def change(client: Client, named: str) -> Result:
            changed = client.post("/".join(filter(None, (named_path(self.path, named), action))), body)
            return line(changed, shown(changed))

        self._add(name, text, change)

    def _add(self, name: str, text: str, command: Callable[[Client, str], Result]) -> None:
        """Add a command whose signature has the argument of this resource."""

        def run(client: Client, named: str) -> Result:
            return command(client, named)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("client", kind), inspect.Parameter("named", kind, annotation=self.argument)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.commands.command(name, help=text)(with_client(run))
