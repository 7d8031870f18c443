"""Templates of graders: `{{ item.answer }}` and `{{ sample.output_text }}` in a string, as in OpenAI's graders.

`item` is the row of the evaluation file, `sample` the answer of a model. A path goes into objects with `.name` and
into arrays with `[0]`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from app.domain.error_text.json_text import as_json

STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d{1,9})\]")
ITEM, SAMPLE = "item", "sample"
SAMPLE_FIELDS = ("output_text", "output_json")
MAX_RENDERED_BYTES = 1_000_000
MAX_COMPARED_CHARACTERS = 100_000
MAX_QUOTED_NAMES, MAX_QUOTED_CHARACTERS = 8, 200  # in the message of a missing field


class Path(NamedTuple):
    """The path in one placeholder."""

    namespace: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.namespace + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)


class MissingField(LookupError):
    """The row or the answer does not have the field; the message names those that it has."""


class TextRefused(ValueError):
    """A template makes a text that is too large; the message has the limit."""


@lru_cache(maxsize=64)  # the templates of clients, parsed, take 300 kB each at most
def parts_of(template: str) -> tuple[str | Path, ...]:
    """The texts of a template, and the paths between them, in their order.

    Raises ValueError for a placeholder that is none of `item` and `sample`. One without an end is a text.
    """
    parts: list[str | Path] = []
    position = 0
    while (begin := template.find("{{", position)) >= 0 and (end := template.find("}}", begin + 2)) >= 0:
        parts += template[position:begin], _parse(template[begin + 2 : end].strip())
        position = end + 2
    return (*parts, template[position:])


def paths_of(template: str) -> tuple[Path, ...]:
    """The paths in a template. Raises ValueError as `parts_of`."""
    return tuple(part for part in parts_of(template) if isinstance(part, Path))


def uses_answer(template: str) -> bool:
    """Whether the template has a value of the answer."""
    return any(path.namespace == SAMPLE for path in paths_of(template))


def render(template: str, item: Mapping[str, Any], output_text: str) -> str:
    """The template with the values of one row and one answer. Values that are no strings are printed as JSON.

    Raises MissingField, and TextRefused as soon as the text has more than MAX_RENDERED_BYTES.
    """
    namespaces = {ITEM: item, SAMPLE: _sample(template, output_text)}
    texts: list[str] = []
    size_bytes = 0
    for part in parts_of(template):
        texts.append(part if isinstance(part, str) else _text(look_up(part, namespaces)))
        size_bytes += len(texts[-1].encode(errors="replace"))
        if size_bytes > MAX_RENDERED_BYTES:
            raise TextRefused(f"a rendered template has more than {MAX_RENDERED_BYTES:,} bytes")
    return "".join(texts)


def compared_text(template: str, item: Mapping[str, Any], output_text: str = "") -> str:
    """The text that a grader compares. Raises MissingField, and TextRefused beyond MAX_COMPARED_CHARACTERS."""
    text = render(template, item, output_text)
    if len(text) > MAX_COMPARED_CHARACTERS:
        limit = f"{MAX_COMPARED_CHARACTERS:,}"
        raise TextRefused(f"a compared text has {len(text):,} characters; at most {limit} are allowed")
    return text


def look_up(path: Path, namespaces: Mapping[str, Any]) -> Any:
    """The value at a path. Raises MissingField."""
    value: Any = namespaces[path.namespace]
    for number, step in enumerate(path.steps):
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            where = str(Path(path.namespace, path.steps[:number]))[:MAX_QUOTED_CHARACTERS]
            names = islice(value, MAX_QUOTED_NAMES) if isinstance(value, Mapping) else ()
            has = ", ".join(name[:MAX_QUOTED_CHARACTERS] for name in names) or "no fields"
            text = f"there is no {{{{ {str(path)[:MAX_QUOTED_CHARACTERS]} }}}}; {where} has: {has}"
            raise MissingField(text) from None
    return value


def _text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise TextRefused("a value of the answer is nested too deeply") from None


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
