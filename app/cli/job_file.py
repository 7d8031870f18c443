"""Job files: create bodies as YAML or JSON, for `--file`.

YAML is read as JSON with comments and fewer quotes: the types of its core schema (1.2), so that 1e-4 is a number, `no`
and 2026-12-01 are texts; no aliases, tags, repeated keys or keys that are no text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from app.cli.errors import UsageError
from app.domain.datasets.jsonl import LineError, json_type, parse_value
from app.domain.error_text.json_text import as_json

MAX_BYTES = 1 << 18
TEXT = "tag:yaml.org,2002:str"
SCALARS = {  # the types of texts without quotes, and their first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
}


def read_job_file(path: Path) -> dict[str, Any]:
    """The body in the file. Raises UsageError with the line of what cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--file {path}: {error.strerror}.") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"--file {path}: more than {MAX_BYTES:,} bytes, which are allowed.")
    try:
        if path.suffix.lower() != ".json":
            data = json.dumps(yaml.load(data, _Loader)).encode()
        if isinstance(body := parse_value(data), dict):
            return body
        problem = f"the file is a JSON {json_type(body)}, but must be an object"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"line {mark.line + 1}: {error.problem}" if mark else str(error.problem)
    except (LineError, yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        problem = str(error)
    raise UsageError(f"--file {path}: {problem}. The file has the body of a create call; see docs/guides/clients.md.")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (of this class, not those of YAML 1.1)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) or getattr(event, "anchor", None):
            raise _error("an alias, an anchor or a tag; write the value itself", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.tag != TEXT:
                raise _error("a key that is no text", key)
            if key.value in names:
                raise _error(f"{as_json(key.value)} is twice in one mapping", key)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _error(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


for _name, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
