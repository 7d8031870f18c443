"""The commands that the dashboard prints, and those in the shell blocks of the pages, can be entered as they stand."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from app.cli.main import app as command_line
from app.web.pages.jobs import job_form
from tests.test_docs import DOCS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for path in (ROOT / "app" / "web").rglob("*.*") if path.suffix in (".py", ".html", ".js"))
IN_TEXT = re.compile(r"(?<![\w-])tunery (?=[a-z-])([^\n<`]*)")  # up to the end of the line, of the text or of <code>
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
IN_SHELL = re.compile(r"(?:^|[(;&|] ?)tunery (.*)", re.MULTILINE)
COMMANDS = typer.main.get_command(command_line)
BODY = {
    "model": "m", "training_file": "file-1", "validation_file": "file-2", "suffix": "s", "seed": 7, "priority": 1,
    "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, "lora": {"r": 8}, "quantization": None,
    "metadata": {"team": "a b"}, "urgent": True, "worker_labels": ["l4"], "deliver_to": ["staging"],
}  # fmt: skip


def texts(path: Path) -> Iterator[str]:
    """Every text of a source file, whose replaced parts are the word X."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield source
        return
    nodes = list(ast.walk(ast.parse(source)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield re.sub(r"\{\w+\}", "X", node.value)


def of_the_dashboard() -> list[str]:
    snippet = job_form.command(BODY, "http://api.test").replace("\\\n", "")
    found = (text for path in SOURCES if path.name != "job_form.py" for text in texts(path))
    return sorted({words.strip() for text in (snippet, *found) for words in IN_TEXT.findall(text)})


def of_the_pages() -> list[str]:
    pages = (path.read_text(encoding="utf-8") for path in DOCS)
    blocks = (re.sub(r"\s*\\\n\s*", " ", block) for page in pages for block in SHELL.findall(page))
    return sorted({words for block in blocks for words in IN_SHELL.findall(block)})


def leaf(words: list[str]) -> tuple[TyperCommand, list[str]]:
    """The command that the first words name, and its arguments."""
    command = COMMANDS
    while isinstance(command, TyperGroup):
        name, *words = words
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
    assert isinstance(command, TyperCommand)
    return command, words


def test_each_has_arguments_and_options_that_exist(subtests: pytest.Subtests) -> None:
    for command in (*of_the_dashboard(), *of_the_pages()):
        with subtests.test(command):
            check(command)


def check(command: str) -> None:
    words = shlex.split(command, comments=True)
    ends = [number for number, word in enumerate(words) if word in ("|", "||", "&", "&&", ";", ">") or word[0] == ")"]
    parsed, arguments = leaf(words[: min(ends, default=None)])
    if arguments != ["--help"]:
        parsed.make_context(command, arguments)


def test_the_dashboard_and_the_pages_print_some() -> None:
    starts = {" ".join(command.split()[:2]) for command in of_the_dashboard()}
    assert {"webhooks create", "keys create", "models add", "jobs export", "jobs create"} <= starts
    assert len(of_the_pages()) > 50
