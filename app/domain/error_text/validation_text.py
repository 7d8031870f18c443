"""Messages for pydantic's validation errors in terms of JSON: one sentence for each error type of a request.

pydantic's own messages use terms of Python ("Dictionary should have ... after validation", "Input should be a valid
integer"). A test sends hostile values to every schema and compares the resulting error types with this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.domain.error_text.json_text import as_json, counted, plain_number, quoted

BOOLEAN, INTEGER, NUMBER = "must be true or false", "must be a whole number", "must be a number"
STRING, ARRAY, OBJECT = "must be a string", "must be an array", "must be a JSON object"
# The message appends the value: "must be a whole number, not true".
RULES: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "bool_type": BOOLEAN,
    "bool_parsing": BOOLEAN,
    "int_type": INTEGER,
    "int_parsing": INTEGER,
    "int_parsing_size": f"{INTEGER} of at most 19 digits",
    "int_from_float": INTEGER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "string_type": STRING,
    "list_type": ARRAY,
    "dict_type": OBJECT,
    "model_type": OBJECT,
    "model_attributes_type": OBJECT,
    "literal_error": lambda context: f"must be {_in_json(context['expected'])}",
    "string_pattern_mismatch": lambda context: f"must match the pattern {context['pattern']}",
    "greater_than_equal": lambda context: f"must be at least {_bound(context['ge'])}",
    "less_than_equal": lambda context: f"must be at most {_bound(context['le'])}",
    "union_tag_invalid": lambda context: f"type must be one of {_in_json(context['expected_tags'])}",
    "union_tag_not_found": "must have a type",
    "value_error": lambda context: str(context["error"]),
}
LENGTHS = ("string_too_long", "too_long", "string_too_short", "too_short")
DEFAULT_RULE = "must be a value as the API reference describes it"


def error_sentence(error: Mapping[str, Any]) -> str:
    """The problem of one value, to append to its path. `error` is an item of pydantic's `ValidationError.errors()`."""
    kind, value, context = str(error["type"]), error.get("input"), error.get("ctx", {})
    if kind in LENGTHS:
        return _length_problem(value, context.get("min_length"), context.get("max_length"))
    rule = RULES.get(kind, DEFAULT_RULE)
    return f"{rule if isinstance(rule, str) else rule(context)}, not {as_json(value)}"


def _length_problem(value: Any, min_length: int | None, max_length: int | None) -> str:
    if not value:
        return "must not be empty"
    noun = "character" if isinstance(value, str) else "pair" if isinstance(value, Mapping) else "item"
    subject = f"{quoted(value)} " if isinstance(value, str) else ""
    bound = f"at most {max_length:,} are allowed" if min_length is None else f"at least {min_length:,} are needed"
    return f"{subject}has {counted(len(value), noun)}; {bound}"


def _bound(value: float) -> str:
    return f"{value}" if isinstance(value, int) else plain_number(value)


def _in_json(expected: str) -> str:
    """The values of a Literal in JSON's quotes; pydantic writes them in Python's: 'asc' or 'desc'."""
    return expected.replace("'", '"')
