"""HTTP's conditions on an immutable object: which bytes are asked for, and does the client have them already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.error_text.json_text import shown, unquoted
from app.errors import RangeNotSatisfiable

RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
MAX_DIGITS = 18  # a position with more is beyond every object; Python refuses to read one with thousands
BEYOND = 10**MAX_DIGITS


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of `total`, `end` exclusive."""

    start: int
    end: int
    total: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.total}"


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """If-None-Match names what we would send: answer 304."""
    names = {name.strip().removeprefix("W/") for name in headers.get("if-none-match", "").split(",")}
    return etag in names or "*" in names


def requested_span(headers: Mapping[str, str], etag: str, total: int) -> Span | None:
    """Bytes asked for by a Range header (RFC 9110, 14.1.2 and 14.2). None for the whole object.

    A unit that is not bytes and an If-Range that names an older object must be answered with the whole; so are several
    ranges, which a server may ignore. Raises RangeNotSatisfiable for a single range that is invalid or selects nothing.
    """
    unit, equals, ranges = headers.get("range", "").partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    if headers.get("if-range", etag).strip() != etag:
        return None
    named = [text for text in (text.strip(" \t") for text in ranges.split(",")) if text]  # a list may have empty items
    if len(named) > 1:
        return None
    return _single_span(named[0] if named else "", total)


def _single_span(text: str, total: int) -> Span | None:
    found = RANGE.fullmatch(text)
    if found is None or text == "-":
        wrong = f"Range: {shown(text)} is not a range such as bytes=0-1023, bytes=1024- or bytes=-512"
        raise RangeNotSatisfiable(wrong, total)
    first, last = (_position(digits) for digits in found.groups())
    if first is None:
        start, end = max(0, total - (last or 0)), total
        if last and not total:
            return None  # a suffix of nothing is satisfiable, and no Content-Range can say so
    else:
        start, end = first, total if last is None else min(total, last + 1)
    if start >= end:
        asked = f"Range: bytes={unquoted(text)} selects nothing of the {total:,} bytes there are"
        raise RangeNotSatisfiable(asked, total)
    return Span(start, end, total)


def _position(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return BEYOND if len(significant) > MAX_DIGITS else int(significant or "0")
