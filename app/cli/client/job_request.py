"""Request bodies of the job commands, built from their options. The server resolves what is not given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.cli.errors import UsageError
from app.domain.jobs.create_job import create_body

Json = dict[str, Any]


def job_body(
    options: Mapping[str, Any], assignments: Sequence[str] = (), no_quantization: bool = False, is_clone: bool = False
) -> Json:
    """The create body of {setting: value}, of `--set` and of `--no-quantization`, or the changes of a clone.

    Settings without a value are left out. Raises UsageError for a contradiction.
    """
    settings = {name: value for name, value in options.items() if value not in (None, [])}
    if "metadata" in settings:
        settings["metadata"] = _parse_pairs(settings["metadata"])
    for assignment in assignments:
        name, text = _parse_pair(assignment, "--set")
        value = _parse_value(text)
        if settings.setdefault(name, value) != value:
            raise UsageError(f"--set {assignment} contradicts {settings[name]!r}, which was also given for {name}.")
    if no_quantization:
        if any(name.startswith("quantization") for name in settings):
            raise UsageError("--no-quantization and --set quantization.… contradict each other; give one of them.")
        settings["quantization"] = None
    return create_body(settings, None if is_clone else "supervised")


def build_update_body(priority: int | None, metadata: Sequence[str], no_metadata: bool) -> Json:
    """The changes to an existing job. Raises UsageError if there are none."""
    if metadata and no_metadata:
        raise UsageError("--metadata and --no-metadata contradict each other; give one of them.")
    body: Json = {} if priority is None else {"priority": priority}
    if metadata or no_metadata:
        body["metadata"] = _parse_pairs(metadata) or None
    if not body:
        raise UsageError("Nothing to change: give --priority, --metadata or --no-metadata.")
    return body


def _parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    return dict(_parse_pair(pair, "--metadata") for pair in pairs)


def _parse_pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise UsageError(f"{option} {pair} is not of the form {option} name=value.")
    return name, value


def _parse_value(text: str) -> Any:
    """Parse a JSON value such as a number, true, null or a list; any other text is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
