"""What every command of the tree has: other names that people guess, its group in the help, and readable values.

typer builds a command from the signature of its function; here is what does not depend on one.
"""

from __future__ import annotations

from typing import Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

PANELS = {  # of `tunery --help`, in its order
    "Use": ("ask", "compare", "adapters", "models", "targets", "login", "whoami", "mcp"),
    "Train": ("files", "jobs", "evals", "eval", "queue", "import", "demo"),
    "Operate": (
        "up", "status", "doctor", "workers", "projects", "keys", "retention", "allow-urgent", "webhooks", "audit",
        "secrets", "storage", "backup", "restore", "fsck",
    ),
}  # fmt: skip
SYNONYMS = (
    ("list", "ls"),
    ("get", "show", "status"),
    ("cancel", "stop"),
    ("set", "update"),
    ("delete", "remove", "revoke", "rm"),
)
MAX_FOUND = 3  # a word of more commands, such as `create`, says little
VALUES = {str: "TEXT", int: "N", float: "NUMBER"}


class _WithReadableValues:
    def get_params(self, ctx: Any) -> Any:
        """The parameters, with the values of options named for people; a flag has none, an argument its own name."""
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for each in parameters:
            kind = each.type_descriptor.annotation
            if isinstance(each, TyperArgument) or each.is_flag:
                each.display_type_rich = lambda ctx: ""  # noqa: ARG005  (typer's signature)
            elif each.metavar is None and not each.type_descriptor.is_choice:
                each.metavar = VALUES.get((*get_args(kind), kind)[0], "PATH")
        return parameters


class TreeCommand(_WithReadableValues, TyperCommand):
    pass


class TreeGroup(_WithReadableValues, TyperGroup):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for panel, names in PANELS.items() if self.name == "tunery" else ():
            for name in names:  # a command that no panel names stays before these
                command = self.commands[name] = self.commands.pop(name)
                command.rich_help_panel = panel  # type: ignore[attr-defined]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer, whose error also names the commands of this name in other groups."""
        try:
            return super().resolve_command(ctx, args)
        except typer.TyperException as error:
            groups = ctx.find_root().command.commands.items()
            found = [f"`tunery {name} {args[0]}`" for name, each in groups if args[0] in getattr(each, "commands", ())]
            if 0 < len(found) <= MAX_FOUND:
                error.message += f" There is {' and '.join(found)}."
            raise

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002  (typer's signature)
        """The command of this name, else the one whose name means the same, such as `list` for `ls`."""
        names = [cmd_name, *(name for names in SYNONYMS if cmd_name in names for name in names)]
        return next((self.commands[name] for name in names if name in self.commands), None)


def complete_tree(app: typer.Typer) -> None:
    """Give all commands and groups below `app` these classes."""
    for command in app.registered_commands:
        command.cls = TreeCommand
    for group in app.registered_groups:
        group.cls = TreeGroup
        if group.typer_instance is not None:
            complete_tree(group.typer_instance)
