"""Content-Range of a request: which bytes of an upload the body holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import BadRequest

FORM = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


@dataclass(frozen=True)
class AskedSpan:
    """From `start` to `end` (exclusive) of `total`. All None: the whole, from its beginning."""

    start: int | None = None
    end: int | None = None
    total: int | None = None

    def check(self, total_bytes: int, content_length: int | None) -> int:
        """Where the body has to end. Raises BadRequest for a body that cannot be what it says it is."""
        if self.total not in (None, total_bytes):
            raise _wrong(f"says {self.total:,} bytes in all, but the upload was declared with {total_bytes:,}")
        end = total_bytes if self.end is None else self.end
        if end > total_bytes:
            raise _wrong(f"ends at byte {end - 1:,}, but the upload was declared with {total_bytes:,} bytes")
        length = end - (self.start or 0)
        if content_length not in (None, length):
            text = f"The body has {content_length:,} bytes, but {length:,} are to come"
            why = "by its Content-Range" if self.end is not None else "as the upload was declared"
            raise BadRequest(f"{text}, {why}.", "Content-Range", "upload_size_mismatch")
        return end


def asked_span(headers: Mapping[str, str]) -> AskedSpan:
    asked = headers.get("content-range")
    if asked is None:
        return AskedSpan()
    found = FORM.fullmatch(asked.strip())
    if found is None:
        raise _wrong(f"{asked[:60]!r} is not one range such as bytes 1048576-2097151/2097152")
    start, last = int(found[1]), int(found[2])
    if last < start:
        raise _wrong(f"{asked[:60]!r} ends before it begins")
    return AskedSpan(start, last + 1, None if found[3] == "*" else int(found[3]))


def _wrong(what: str) -> BadRequest:
    return BadRequest(f"Content-Range: {what}", "Content-Range")
