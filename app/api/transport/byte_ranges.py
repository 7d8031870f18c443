"""Range and conditional requests for an immutable object (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.error_text.json_text import as_json, unquoted
from app.errors import RangeNotSatisfiable

RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
MAX_DIGITS = 18  # a longer position is beyond every object, and int() refuses thousands of digits
OUT_OF_BOUNDS = 10**MAX_DIGITS


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` to `end` (exclusive) of `total`."""

    start: int
    end: int
    total: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.total}"


def matches_etag(headers: Mapping[str, str], etag: str) -> bool:
    """Whether If-None-Match holds `etag`: the response is then a 304."""
    etags = {name.strip().removeprefix("W/") for name in headers.get("if-none-match", "").split(",")}
    return etag in etags or "*" in etags


def requested_range(headers: Mapping[str, str], etag: str, total: int) -> ByteRange | None:
    """The bytes that a Range header requests (RFC 9110, 14.1.2 and 14.2); None for the whole object.

    A unit other than bytes and an If-Range with another ETag require the whole object. Several ranges may be ignored,
    and are. Raises RangeNotSatisfiable for a single range that is invalid or selects nothing.
    """
    unit, equals, ranges = headers.get("range", "").partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    if headers.get("if-range", etag).strip() != etag:
        return None
    requested = [
        text for text in (text.strip(" \t") for text in ranges.split(",")) if text
    ]  # a list may have empty items
    if len(requested) > 1:
        return None
    return _single_range(requested[0] if requested else "", total)


def _single_range(text: str, total: int) -> ByteRange | None:
    match = RANGE.fullmatch(text)
    if match is None or text == "-":
        message = f"Range: {as_json(text)} is not a range such as bytes=0-1023, bytes=1024- or bytes=-512"
        raise RangeNotSatisfiable(message, total)
    first, last = (_position(digits) for digits in match.groups())
    if first is None:
        start, end = max(0, total - (last or 0)), total
        if last and not total:
            return None  # a suffix of an empty object is satisfiable, but has no Content-Range
    else:
        start, end = first, total if last is None else min(total, last + 1)
    if start >= end:
        message = f"Range: bytes={unquoted(text)} selects nothing: the object has {total:,} bytes"
        raise RangeNotSatisfiable(message, total)
    return ByteRange(start, end, total)


def _position(digits: str) -> int | None:
    if not digits:
        return None
    significant = digits.lstrip("0")
    return OUT_OF_BOUNDS if len(significant) > MAX_DIGITS else int(significant or "0")
