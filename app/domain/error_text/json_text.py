"""Values of clients as they appear in messages: as JSON, printable, shortened with a note of their length."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
    """A bound without an exponent if it has few digits: 0.000001 and 10000, but 1e-12 and 1e+12."""
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
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
