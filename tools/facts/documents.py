"""Facts that need no running service: the OpenAPI document, commands, settings, errors, metrics and alerts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

NOT_FACTS = ("title", "example", "examples", "operationId")  # titles and operation ids are names of the code


def facts() -> dict[str, list[str]]:
    """{name: lines}."""
    import app.cli.main
    import app.errors
    from app.settings import Settings, WebSettings

    errors = [each for each in vars(app.errors).values() if hasattr(each, "status")]
    return {
        "openapi": sorted(leaves(openapi_document())),
        "commands": list(command_lines(typer.main.get_command(app.cli.main.app), "tunery")),
        "settings": [line for each in (Settings, WebSettings) for line in setting_lines(each)],
        "errors": [f"{each.__name__} {each.status} {each.type} {each.code}" for each in errors]
        + sorted(re.findall(r"^(?:#+|\|) `(\w+)`", page_of_errors(), re.MULTILINE)),
        "monitoring": page_lines(r"\| `tunery_| +- alert:", "monitoring.md", "alerts.yml"),
    }


def openapi_document() -> dict[str, Any]:
    from app.main import create_app
    from app.settings import Settings

    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings(database_url="postgresql://unused/x", redis_url="redis://unused", data_dir=Path(data_dir))
        return create_app(settings).openapi()


def page_of_errors() -> str:
    """The page of errors, which earlier commits have as a file."""
    if (path := Path("docs/errors.md")).exists():
        return path.read_text("utf-8")
    from tools.docs.errors_page import errors_page

    return errors_page()


def page_lines(pattern: str, *names: str) -> list[str]:
    """The lines of files below docs/ that begin with the pattern: rows of tables, rules."""
    paths = [path for name in names for path in Path("docs").rglob(name)]
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if re.match(pattern, line)]


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """A line for each string and number of a JSON document, with its path, but for examples and their like."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key not in NOT_FACTS or path.endswith(".properties"):
                yield from leaves(each, f"{path}.{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            is_object = isinstance(each, dict)
            yield from leaves(each, f"{path}.{each.get('name', number)}" if is_object else path)
    else:
        yield f"{path} {json.dumps(value, ensure_ascii=False)}"


def command_lines(command: Any, name: str) -> Iterator[str]:
    """What `--help` says of a command, its arguments and options, and its subcommands."""
    yield f"{name}: {' '.join((command.help or '').split())}"
    for parameter in command.params:
        yield f"{name} {': '.join(parameter.get_help_record(typer.Context(command)) or parameter.opts)}"
    for child_name, child in getattr(command, "commands", {}).items():
        yield from command_lines(child, f"{name} {child_name}")


def setting_lines(settings: Any) -> Iterator[str]:
    """Type, bounds and default of each setting by its name in the code, and the names of its variable."""
    yield from sorted(leaves(settings.model_json_schema(by_alias=False), settings.model_config["env_prefix"]))
    for name, field in settings.model_fields.items():
        if field.validation_alias:
            yield f"{name} {field.validation_alias}"
