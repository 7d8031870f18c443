"""Values and keys of clients as they appear in messages: as JSON, printable, shortened with a note of their length.

Also messages for JSON syntax errors, as those of Python's decoder are written for programmers of Python ("Expecting
property name enclosed in double quotes"), and for unknown names, with the most similar known one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from json import JSONDecodeError
from typing import Any

from app.errors import UnknownParameter

MAX_VALUE_CHARACTERS = 60  # of a value in a message
MAX_PATH_CHARACTERS = 200  # of the dotted path of a key


def as_json(value: Any, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """`value` as short JSON: strings are cut at `limit` characters, longer arrays and objects are only counted."""
    if isinstance(value, str):
        return quoted(value, limit) + (f" ({len(value):,} characters)" if len(value) > limit else "")
    is_long = isinstance(value, Mapping | Sequence) and len(value) > limit  # its text takes time, and is not shown
    text = "" if is_long else printable(json.dumps(value, ensure_ascii=False, default=str))
    if not is_long and len(text) <= limit:
        return text
    if isinstance(value, Mapping):
        return f"an object with {counted(len(value), 'key')}"
    if isinstance(value, Sequence):
        return f"an array with {counted(len(value), 'item')}"
    return f"{text[:limit]}… ({len(text):,} digits)"


def quoted(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """A string in JSON's quotes, cut after `limit` characters."""
    return printable(json.dumps(text if len(text) <= limit else f"{text[:limit]}…", ensure_ascii=False))


def unquoted(text: str, limit: int = MAX_VALUE_CHARACTERS) -> str:
    """A key or an id without quotes, printable and cut after `limit` characters."""
    return printable(text if len(text) <= limit else f"{text[:limit]}…")


def plain_number(value: float) -> str:
    """A bound without an exponent if it is an integer or has few digits: 0.000001 and 10000, but 1e-12 and 1e+12."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return text if abs(value) < 1e9 and float(text) == value else f"{value:g}"


def printable(text: str) -> str:
    """Escape what a terminal would interpret or not display: separators, direction marks, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    escaped = json.dumps(character)[1:-1]
    return f"\\u{ord(character):04x}" if escaped == character else escaped  # JSON does not escape DEL


def counted(number: int, noun: str) -> str:
    """1 job, 1,000 jobs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


EXPECTED = {
    "Expecting value": "a value",
    "Expecting ':' delimiter": "a colon",
    "Expecting ',' delimiter": "a comma or a closing bracket",
    "Expecting property name enclosed in double quotes": "a key in double quotes",
    "Extra data": "the end of the text",
}


def syntax_error_text(error: JSONDecodeError) -> str:
    """The unexpected and the expected characters, with the column, and the line if there are several."""
    where = f"column {error.colno}" if "\n" not in error.doc else f"line {error.lineno}, column {error.colno}"
    character = error.doc[error.pos : error.pos + 1]
    if error.msg in EXPECTED:
        found = quoted(character) if character else "the end of the text"
        return f"expected {EXPECTED[error.msg]}, found {found} at {where}"
    if error.msg.startswith("Invalid control character"):
        # the escape \\u0000 is refused too: PostgreSQL's text type cannot store it
        remedy = "remove it" if character == "\x00" else f"write it as {json.dumps(character)[1:-1]}"
        return f"the control character U+{ord(character):04X} inside a string at {where}; {remedy}"
    if error.msg.startswith("Unterminated string"):
        return f"the string that begins at {where} has no closing quote"
    if error.msg.startswith("Invalid \\uXXXX"):
        return f"\\u without four hexadecimal digits at {where}"
    if error.msg.startswith("Invalid \\escape"):
        return f'a backslash at {where}; only " \\ / b f n r t and u may follow one, and \\\\ is the backslash itself'
    return f"{error.msg.removesuffix(' at')} at {where}"


MAX_SUGGESTIONS = 10  # in one request: a body may have a hundred thousand unknown keys
MAX_NAME_CHARACTERS = 60  # the time of the search grows with the square of the length


def suggestion(name: str, known: Sequence[str]) -> str:
    """The known name that is most similar, as a question in brackets; empty if none is similar."""
    similar = get_close_matches(name[:MAX_NAME_CHARACTERS], known, n=1)
    return f" (did you mean {as_json(similar[0])}?)" if similar else ""


def unknown_parameter(path: str, known: tuple[str, ...], earlier_problems: int) -> UnknownParameter:
    """The error for the key at a dotted path; after MAX_SUGGESTIONS problems without a similar name."""
    where = unquoted(path, MAX_PATH_CHARACTERS)
    similar = suggestion(where.rpartition(".")[2], known) if earlier_problems < MAX_SUGGESTIONS else ""
    return UnknownParameter(f"unknown parameter {where}{similar}; known here: {listed(known)}", where)


@cache
def listed(names: tuple[str, ...]) -> str:
    """Cached, as it is the same for all unknown keys of an object."""
    return ", ".join(sorted(set(names)))
