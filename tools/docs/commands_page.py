"""reference/commands.md: every command of `tunery` with its arguments and options, by the template beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import typer

from app.cli.main import app
from tools.docs.api_pages import templates

COMMON = ("--help", "--json", "--base-url", "--data-dir")  # named once, at the top of the page


class DocumentedCommand(NamedTuple):
    name: str  # with those of its groups
    help: str
    usage: str
    parameters: list[tuple[str, str]]  # name, description; as `--help` shows them


def commands_page() -> str:
    tree = typer.main.get_command(app)
    groups = {name: list(_commands(command, f"tunery {name}")) for name, command in tree.commands.items()}  # type: ignore[attr-defined]
    return templates().get_template("commands.md.jinja").render(groups=groups)


def _commands(command: Any, name: str) -> Iterator[DocumentedCommand]:
    """The command, or those of the group."""
    if children := getattr(command, "commands", None):
        for child_name, child in children.items():
            yield from _commands(child, f"{name} {child_name}")
        return
    context = typer.Context(command, info_name=name)
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    usage = " ".join(command.collect_usage_pieces(context))
    yield DocumentedCommand(
        name, command.help or "", usage, [each for each in records if each[0].split()[0] not in COMMON]
    )
