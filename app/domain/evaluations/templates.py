"""Templates of graders: `{{ item.answer }}` and `{{ sample.output_text }}` in a string, as in OpenAI's graders.

`item` is the row of the evaluation file, `sample` the answer of a model. A path goes into objects with `.name` and
into arrays with `[0]`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from app.domain.error_text.json_text import as_json

PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+)\]")
ITEM, SAMPLE = "item", "sample"
SAMPLE_FIELDS = ("output_text", "output_json")


class Path(NamedTuple):
    """The path in one placeholder."""

    namespace: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.namespace + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)


class MissingField(LookupError):
    """The row or the answer does not have the field; the message names those that it has."""


@cache
def paths_of(template: str) -> tuple[Path, ...]:
    """The paths in a template. Raises ValueError for a placeholder that is none of `item` and `sample`."""
    return tuple(_parse(match[1].strip()) for match in PLACEHOLDER.finditer(template))


def render(template: str, item: Mapping[str, Any], output_text: str) -> str:
    """The template with the values of one row and one answer. Values that are no strings are printed as JSON.

    Raises MissingField.
    """
    namespaces = {ITEM: item, SAMPLE: _sample(template, output_text)}

    def value(match: re.Match[str]) -> str:
        found = look_up(_parse(match[1].strip()), namespaces)
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return PLACEHOLDER.sub(value, template)


def look_up(path: Path, namespaces: Mapping[str, Any]) -> Any:
    """The value at a path. Raises MissingField."""
    value: Any = namespaces[path.namespace]
    for number, step in enumerate(path.steps):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            where = Path(path.namespace, path.steps[:number])
            has = ", ".join(value) if isinstance(value, Mapping) and value else "no fields"
            raise MissingField(f"there is no {{{{ {path} }}}}; {where} has: {has}") from None
    return value


def _sample(template: str, output_text: str) -> dict[str, Any]:
    """`output_json` exists only if the answer is JSON, and is parsed only if the template needs it."""
    sample: dict[str, Any] = {"output_text": output_text}
    if any(path.steps[:1] == ("output_json",) for path in paths_of(template)):
        with contextlib.suppress(ValueError, RecursionError):
            sample["output_json"] = json.loads(output_text)
    return sample


def _parse(text: str) -> Path:
    namespace = re.match(r"[A-Za-z_]+", text)
    rest = text[namespace.end() :] if namespace else text
    matches = list(STEP.finditer(rest))
    if namespace is None or not matches or "".join(match[0] for match in matches) != rest:
        raise ValueError(f"{as_json('{{ ' + text + ' }}')} is no path such as {{{{ item.answer }}}}")
    if namespace[0] not in (ITEM, SAMPLE):
        raise ValueError(f"{{{{ {text} }}}}: {namespace[0]} is not known; allowed are item and sample")
    path = Path(namespace[0], tuple(int(match[2]) if match[2] else match[1] for match in matches))
    if path.namespace == SAMPLE and path.steps[0] not in SAMPLE_FIELDS:
        allowed = " and ".join(f"sample.{name}" for name in SAMPLE_FIELDS)
        raise ValueError(f"{{{{ {text} }}}} is not offered here; allowed are {allowed}")
    return path
