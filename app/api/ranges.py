"""HTTP's conditions on an immutable object: which bytes are asked for, and does the client have them already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import RangeNotSatisfiable

SINGLE = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)


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
    """None for the whole object. Raises RangeNotSatisfiable.

    Several ranges in one request, another unit, and an If-Range that names an older object all mean the whole of it.
    """
    asked = headers.get("range", "").strip()
    unit, equals, ranges = asked.partition("=")
    if unit.strip().lower() != "bytes" or not equals or "," in ranges:
        return None
    if headers.get("if-range", etag).strip() != etag:
        return None
    return _single_span(ranges.strip(), total)


def _single_span(text: str, total: int) -> Span:
    found = SINGLE.fullmatch(text)
    if found is None or text == "-":
        raise _unsatisfiable(
            f"Range: {text[:60]!r} is not one range such as bytes=0-1023, bytes=1024- or bytes=-512", total
        )
    first, last = found.groups()
    if not first:
        start, end = max(0, total - int(last)), total
    else:
        start, end = int(first), min(total, int(last) + 1) if last else total
    if start >= end:
        raise _unsatisfiable(f"Range: bytes={text} selects nothing of the {total:,} bytes there are", total)
    return Span(start, end, total)


def _unsatisfiable(message: str, total: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(message, total)
