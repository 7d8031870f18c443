"""pydantic's findings in plain words of JSON: one sentence for each type of error that a request can cause.

pydantic's own texts are for those who write Python ("Dictionary should have ... after validation", "Input should be a
valid integer"). A test sends hostile values to every schema and holds this table against the types that came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.domain.error_text.json_text import count, cut, plain_number, shown

BOOLEAN, WHOLE, NUMBER = "must be true or false", "must be a whole number", "must be a number"
STRING, ARRAY, OBJECT = "must be a string", "must be an array", "must be a JSON object"
# Each is followed by the value that was seen: "must be a whole number, not true".
RULES: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "bool_type": BOOLEAN,
    "bool_parsing": BOOLEAN,
    "int_type": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": f"{WHOLE} of at most 19 digits",
    "int_from_float": WHOLE,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "string_type": STRING,
    "list_type": ARRAY,
    "dict_type": OBJECT,
    "model_type": OBJECT,
    "literal_error": lambda context: f"must be {_in_json(context['expected'])}",
    "string_pattern_mismatch": lambda context: f"must match the pattern {context['pattern']}",
    "greater_than_equal": lambda context: f"must be at least {_bound(context['ge'])}",
    "less_than_equal": lambda context: f"must be at most {_bound(context['le'])}",
    "value_error": lambda context: str(context["error"]),
}
LENGTHS = ("string_too_long", "too_long", "string_too_short", "too_short")
OTHERWISE = "must be a value as the reference describes it"


def sentence(error: Mapping[str, Any]) -> str:
    """What is wrong with one value, to follow its path: `error` is one of pydantic's `ValidationError.errors()`."""
    kind, seen, context = str(error["type"]), error.get("input"), error.get("ctx", {})
    if kind in LENGTHS:
        return _of_length(seen, context.get("min_length"), context.get("max_length"))
    rule = RULES.get(kind, OTHERWISE)
    return f"{rule if isinstance(rule, str) else rule(context)}, not {shown(seen)}"


def _of_length(seen: Any, least: int | None, most: int | None) -> str:
    if not seen:
        return "must not be empty"
    noun = "character" if isinstance(seen, str) else "pair" if isinstance(seen, Mapping) else "item"
    subject = f"{cut(seen)} " if isinstance(seen, str) else ""
    bound = f"at most {most:,} are allowed" if least is None else f"at least {least:,} are needed"
    return f"{subject}has {count(len(seen), noun)}; {bound}"


def _bound(value: float) -> str:
    return f"{value}" if isinstance(value, int) else plain_number(value)


def _in_json(expected: str) -> str:
    """pydantic joins the values of a Literal as Python writes them: 'asc' or 'desc'."""
    return expected.replace("'", '"')
