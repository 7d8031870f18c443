"""Text of numbers, times and user data, as all screens show them: every number has its unit."""

from __future__ import annotations

import time
import unicodedata
from datetime import UTC, datetime

from app.domain.units import duration_text

MAX_LINE_CHARACTERS = 200
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
HIDDEN_CATEGORIES = ("Cc", "Cf", "Co", "Cs")  # control and format characters, among them changes of direction
JOINERS = "\u200c\u200d"  # between letters of Persian and of Indian scripts, and in emoji
MARK_CATEGORIES = ("Mn", "Me")
MAX_MARKS = 6  # on one letter; more are drawn over the lines above and below it


def clean(text: str | None, max_characters: int = MAX_LINE_CHARACTERS) -> str:
    """User text in one line: control and direction characters are shown as escapes, and a long text is cut."""
    text = text or ""
    shown = _visible_text(text[:max_characters], "")
    return shown if len(text) <= max_characters else f"{shown}…"


def clean_lines(text: str, max_characters: int) -> str:
    """As `clean`, with line breaks and tabs as they are."""
    shown = _visible_text(text[:max_characters], "\n\t")
    return shown if len(text) <= max_characters else f"{shown}…"


def _visible_text(text: str, kept: str) -> str:
    """`text` with escapes for what has no place of its own, but for the characters `kept`."""
    if text.isascii() and text.isprintable():
        return text
    shown, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in MARK_CATEGORIES else 0
        is_hidden = category in HIDDEN_CATEGORIES and character not in JOINERS + kept
        shown.append(f"\\u{ord(character):04x}" if is_hidden or marks > MAX_MARKS else character)
    return "".join(shown)


def size(size_bytes: float | None) -> str:
    """1_234_567 -> 1.2 MB (decimal)."""
    if size_bytes is None:
        return "–"
    value = float(size_bytes)
    for unit in BYTE_UNITS:
        if value < 1000 or unit == BYTE_UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    return "–" if seconds is None else duration_text(seconds)


def age(unix_seconds: float | None) -> str:
    """The time since then: "12 min ago"."""
    if unix_seconds is None:
        return "–"
    seconds = time.time() - unix_seconds
    return "just now" if seconds < 5 else f"{_one_unit(seconds)} ago"


def until(unix_seconds: float | None) -> str:
    """The time until then: "in 12 min"."""
    if unix_seconds is None:
        return "–"
    seconds = unix_seconds - time.time()
    return f"in {duration(seconds)}" if seconds > 5 else "soon"


def _one_unit(seconds: float) -> str:
    for unit_seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_seconds:
            return f"{seconds // unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(unix_seconds: float | None, clock: str = "%H:%M") -> str:
    """A time in UTC, to the minute."""
    return "–" if unix_seconds is None else f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d {clock}} UTC"


def exact_moment(unix_seconds: float | None) -> str:
    """A time in UTC, to the second."""
    return moment(unix_seconds, "%H:%M:%S")


def count(number: float | None) -> str:
    """With a separator for thousands."""
    if number is None:
        return "–"
    return f"{number:,.0f}"


def loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def short(value: float | None) -> str:
    """Four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def per_second(tokens: float | None) -> str:
    return "–" if tokens is None else f"{tokens:,.0f} tokens/s" if tokens >= 10 else f"{tokens:.1f} tokens/s"
