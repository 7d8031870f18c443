"""A client's values as they may stand in a message: in JSON, printable, short, and with their length where cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN = 60  # characters of a value in a message
MAX_PATH = 200  # and of the dotted path of a key


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """`value` as JSON. A string longer than `limit` is cut, a longer array or object is only counted."""
    if isinstance(value, str):
        return cut(value, limit) + (f" ({len(value):,} characters)" if len(value) > limit else "")
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    if len(text) <= limit:
        return text
    if isinstance(value, Mapping):
        return f"an object with {count(len(value), 'key')}"
    if isinstance(value, Sequence):
        return f"an array with {count(len(value), 'item')}"
    return f"{text[:limit]}… ({len(text):,} digits)"


def cut(text: str, limit: int = MAX_SHOWN) -> str:
    """A string in JSON's quotes, of which at most `limit` characters are left."""
    return printable(json.dumps(text if len(text) <= limit else f"{text[:limit]}…", ensure_ascii=False))


def unquoted(text: str, limit: int = MAX_SHOWN) -> str:
    """A key or an id as it came, without quotes, but printable and at most `limit` characters long."""
    return printable(text if len(text) <= limit else f"{text[:limit]}…")


def plain_number(value: float) -> str:
    """A bound, without an exponent where that reads better: 0.000001 and 10000, but 1e-12 and 1e+12."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return text if abs(value) < 1e9 and float(text) == value else f"{value:g}"


def printable(text: str) -> str:
    """Escape what a terminal would obey or not show: separators, direction marks, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    escaped = json.dumps(character)[1:-1]
    return f"\\u{ord(character):04x}" if escaped == character else escaped  # JSON leaves DEL as it is


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
