"""The Content-Range header of a request: which bytes of an upload the body holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.domain.error_text.json_text import as_json
from app.errors import BadRequest

PATTERN = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


@dataclass(frozen=True)
class ContentRange:
    """Bytes `start` to `end` (exclusive) of `total`. All None without a header: the whole content."""

    start: int | None = None
    end: int | None = None
    total: int | None = None

    def check(self, total_bytes: int, content_length: int | None) -> int:
        """The offset at which the body has to end, for an upload declared with `total_bytes`.

        Raises BadRequest if header, declaration and Content-Length contradict each other.
        """
        if self.total not in (None, total_bytes):
            raise _error(f"the total is {self.total:,} bytes, but the upload was declared with {total_bytes:,}")
        end = total_bytes if self.end is None else self.end
        if end > total_bytes:
            raise _error(f"the range ends at byte {end - 1:,}, but the upload was declared with {total_bytes:,} bytes")
        expected_bytes = end - (self.start or 0)
        if content_length not in (None, expected_bytes):
            source = "by its Content-Range" if self.end is not None else "by the declared size of the upload"
            text = f"The body has {content_length:,} bytes, but must have {expected_bytes:,} {source}."
            raise BadRequest(text, "Content-Range", "upload_size_mismatch")
        return end


def parse_content_range(headers: Mapping[str, str]) -> ContentRange:
    """Raises BadRequest for a header that is not one range of bytes."""
    header = headers.get("content-range")
    if header is None:
        return ContentRange()
    match = PATTERN.fullmatch(header.strip())
    if match is None:
        raise _error(f"{as_json(header)} is not one range such as bytes 1048576-2097151/2097152")
    start, last = int(match[1]), int(match[2])
    if last < start:
        raise _error(f"{as_json(header)} ends before it begins")
    return ContentRange(start, last + 1, None if match[3] == "*" else int(match[3]))


def _error(problem: str) -> BadRequest:
    return BadRequest(f"Content-Range: {problem}", "Content-Range")
