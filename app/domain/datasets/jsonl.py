"""Strict JSON lines: the same rules at upload, in `validating_files` and in the trainer.

Python's `json` accepts NaN, duplicate keys and lone surrogates, and `str.splitlines()` splits valid lines at U+2028. So
bytes are split at b"\n" only, decoded strictly, and parsed by a decoder that refuses what PostgreSQL would refuse.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from app.domain.error_text.json_text import quoted, syntax_error_text

OTHER_FORMAT = "other_format"  # code of the finding
SAMPLE_BYTES = 64 << 10
MAX_NAMES = 8
TAB = "\t"
DELIMITERS = f",;{TAB}|"
QUOTED = re.compile('"[^"]*"')
ZIP, PARQUET = b"PK\x03\x04", b"PAR1"
JSON_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
NO_TABLE = re.compile(r"^\s*\[|[{}\0]")  # a line with JSON, which may be broken, or binary data
RULE = "but every line must be a JSON object"
WAY = (
    "name its columns of input and output (columns=text,label with POST /v1/files, --columns with tunery files "
    "upload), or drop it in the dashboard (Datasets)"
)


def other_format(line: bytes) -> str | None:
    """What a file with this first line is, and how to convert it; None if it may have JSON lines."""
    line = line[:SAMPLE_BYTES]
    if line.startswith(ZIP):
        return f"an Excel workbook (or another ZIP archive), {RULE}: {WAY}"
    if line.startswith(PARQUET):
        return f"a Parquet file, {RULE}: {WAY}"
    if JSON_ARRAY.match(line):
        return f"a JSON array of all examples, {RULE}: write each item into a line of its own (jq -c '.[]')"
    text = line.decode("utf-8", "replace")
    delimiter = delimiter_of(text)
    if NO_TABLE.search(text) or delimiter not in QUOTED.sub("", text):
        return None
    columns = text.split(delimiter, MAX_NAMES)
    names = ", ".join(quoted(name.strip('" \r\n'), 40) for name in columns[:MAX_NAMES])
    more = ", …" if len(columns) > MAX_NAMES else ""
    return f"a {'TSV' if delimiter == TAB else 'CSV'} with the columns {names}{more}, {RULE}: {WAY}"


def delimiter_of(text: str) -> str:
    """The delimiter that the first line of a table has most often outside of quotes; a comma if it has none."""
    first_line = QUOTED.sub("", text).split("\n", 1)[0]
    return max(DELIMITERS, key=first_line.count)


MAX_LINE_BYTES = 4 << 20
MAX_DEPTH = 64
UTF8_BOM = b"\xef\xbb\xbf"
INT64 = 1 << 63
WHITESPACE = b" \t\r\n"  # JSON's (RFC 8259, section 2)
SUSPICIOUS_ESCAPE = re.compile(
    rb"\\u(?:0000|[dD][89a-fA-F])"
)  # strict UTF-8 can encode a NUL or a surrogate only as an escape


@dataclass(frozen=True)
class Finding:
    """One problem of one line, counted from 1. The message quotes the content of the line only in part."""

    line: int
    message: str
    code: str = "invalid_line"

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


def format_findings(findings: Iterable[Finding]) -> str:
    """The findings as sentences; a problem of several lines is one sentence, because lines often share a problem."""
    lines: dict[str, list[str]] = {}
    for finding in findings:
        lines.setdefault(finding.message, []).append(str(finding.line))
    return " ".join(f"{_line_numbers(numbers)}: {message}." for message, numbers in lines.items())


def _line_numbers(numbers: list[str]) -> str:
    *others, last = numbers
    return f"Lines {', '.join(others)} and {last}" if others else f"Line {last}"


@dataclass(frozen=True)
class Line:
    number: int
    value: dict[str, Any]
    size_bytes: int = field(default=0, compare=False)


class LineError(ValueError):
    """A line is not valid JSON; the message is the reason."""


def read_lines(
    file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES, whitespace: bytes | None = WHITESPACE
) -> Iterator[Line | Finding]:
    """Yield each line as a JSON object, or as a finding if it is invalid.

    A file of another format (`other_format`) is one finding. Lines of only `whitespace` (None: ASCII white space) are
    skipped. At most `max_line_bytes` + 1 bytes are read at a time, so a line of 100 MB takes no more memory than a
    valid line.
    """
    number = 0
    while chunk := file.readline(max_line_bytes + 1):
        number += 1
        if number == 1 and (seen := other_format(chunk.removeprefix(UTF8_BOM))):
            yield Finding(number, seen, OTHER_FORMAT)
            return
        if len(chunk) > max_line_bytes and not chunk.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):  # skip the rest of the line
                pass
            text = f"longer than {max_line_bytes:,} bytes, which is the limit for one line"
            yield Finding(number, text, "line_too_long")
            continue
        if number == 1:
            chunk = chunk.removeprefix(UTF8_BOM)
        line = chunk.removesuffix(b"\n").removesuffix(b"\r")
        if line.strip(whitespace):
            yield _parse_line(number, line)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line strictly.

    Raises LineError for what `decode_json` refuses, for NUL, lone surrogates and nesting deeper than 64 levels, and
    for a top level that is not an object.
    """
    value = parse_value(line)
    if not isinstance(value, dict):
        raise LineError(f'a JSON {json_type(value)}, but every line must be a JSON object like {{"messages": [...]}}')
    return value


def parse_value(line: bytes) -> Any:
    """Like `parse_object`, for a value of any type."""
    value = decode_json(line)
    if needs_tree_check(line):
        _check_tree(value, depth=1)
    return value


def needs_tree_check(data: bytes) -> bool:
    """Whether the nesting and all strings of the parsed JSON must be checked.

    Not without suspicious escapes and with few brackets; the check takes twice as long as the parser.
    """
    return data.count(b"{") + data.count(b"[") > MAX_DEPTH or SUSPICIOUS_ESCAPE.search(data) is not None


def decode_json(data: bytes) -> Any:
    """Parse standard JSON: one line, or the body of a request.

    Raises LineError for invalid UTF-8, a BOM, NaN or infinity, a duplicate key, numbers beyond int64 or double, and
    nesting that exhausts the parser. The caller must check the strings (`check_text`).
    """
    text = _decode(data)
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise LineError(f"nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise LineError(f"not valid JSON: {syntax_error_text(error)}") from error


def check_text(text: str) -> None:
    """Raises LineError for characters that PostgreSQL refuses in a string."""
    if "\x00" in text:
        raise LineError("a NUL character (\\u0000) inside a string")
    try:
        text.encode()  # 30 times as fast as a loop over the characters
    except UnicodeEncodeError as error:
        raise LineError("a lone surrogate (\\ud800 to \\udfff without its partner) inside a string") from error


def json_type(value: Any) -> str:
    """JSON's name for the type of a parsed value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def quote_all(words: Iterable[str], limit: int = 8) -> str:
    """Keys or roles for a message: sorted, quoted, at most `limit` of them."""
    return ", ".join(quoted(word) for word in sorted(words)[:limit]) or "none"


def _parse_line(number: int, line: bytes) -> Line | Finding:
    try:
        return Line(number, parse_object(line), len(line))
    except LineError as error:
        return Finding(number, str(error))


def _decode(line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"not valid UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}") from error
    if text.startswith("\ufeff"):
        raise LineError("a byte order mark (U+FEFF), which is allowed only at the start of a file; remove it")
    return text


def _refuse_constant(name: str) -> Any:
    raise LineError(f"{name} is not JSON; use a number or null")


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise LineError(f"the number {text[:40]} is too large for a double")
    return value


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -INT64 <= int(text) < INT64:
        raise LineError(f"the number {text[:40]} is outside the 64-bit integers")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = first_repeated(name for name, _ in pairs)
        raise LineError(f"the key {quoted(repeated)} appears twice in one object; keep one of them")
    return value


def first_repeated(names: Iterable[str]) -> str:
    """The first repeated name, found in one pass: an object may have half a million keys."""
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _check_tree(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LineError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check_tree(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _check_tree(item, depth + 1)


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_parse_float, parse_int=_parse_int, object_pairs_hook=_unique_keys
)  # json.loads would build one for every line
