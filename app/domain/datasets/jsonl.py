"""Strict JSON lines: the same rules at upload, in `validating_files` and in the trainer.

Python's `json` takes NaN, duplicate keys and lone surrogates, and `str.splitlines()` cuts valid lines at U+2028; so
bytes are split on b"\\n" only, decoded strictly, and parsed by a decoder that refuses what PostgreSQL would.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.domain.error_text.json_errors import syntax_error_text

MAX_LINE_BYTES = 4 << 20
MAX_DEPTH = 64
UTF8_BOM = b"\xef\xbb\xbf"
INT64 = 1 << 63
WHITESPACE = b" \t\r\n"  # JSON's (RFC 8259, section 2)
SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # the only way to a NUL or a surrogate in strict UTF-8


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one line, counted from 1; the line's content is never quoted whole."""

    line: int
    message: str
    code: str = "invalid_line"

    def __str__(self) -> str:
        return f"Line {self.line}: {self.message}"


def told(findings: Iterable[Finding]) -> str:
    """Findings in sentences. What is wrong with several lines is said once: it is often the same in all of them."""
    lines: dict[str, list[str]] = {}
    for finding in findings:
        lines.setdefault(finding.message, []).append(str(finding.line))
    return " ".join(f"{_named(numbers)}: {message}." for message, numbers in lines.items())


def _named(numbers: list[str]) -> str:
    *others, last = numbers
    return f"Lines {', '.join(others)} and {last}" if others else f"Line {last}"


@dataclass(frozen=True)
class Line:
    number: int
    value: dict[str, Any]


class LineError(ValueError):
    """Why one line is not acceptable JSON."""


def read_lines(
    file: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES, whitespace: bytes | None = WHITESPACE
) -> Iterator[Line | Finding]:
    """Yield each line as a JSON object, or as the finding that says what is wrong with it.

    A line of nothing but `whitespace` is skipped (None: of what ASCII calls white space). Reads at most
    `max_line_bytes` + 1 at a time, so a 100 MB line costs no more memory than a legal one.
    """
    number = 0
    while chunk := file.readline(max_line_bytes + 1):
        number += 1
        if len(chunk) > max_line_bytes and not chunk.endswith(b"\n"):
            _skip_rest_of_line(file)
            yield Finding(
                number,
                f"longer than {max_line_bytes:,} bytes, which is the limit for one line",
                "line_too_long",
            )
            continue
        if number == 1:
            chunk = chunk.removeprefix(UTF8_BOM)
        line = chunk.removesuffix(b"\n").removesuffix(b"\r")
        if line.strip(whitespace):
            yield _parse_line(number, line)


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line strictly.

    Raises LineError for what `decode_json` refuses, NUL, a lone surrogate, nesting deeper than 64, or a top level that
    is not an object.
    """
    value = parse_value(line)
    if not isinstance(value, dict):
        raise LineError(f'a JSON {json_type(value)}, but every line must be a JSON object like {{"messages": [...]}}')
    return value


def parse_value(line: bytes) -> Any:
    """As `parse_object`, but for a value of any type."""
    value = decode_json(line)
    if needs_walk(line):
        _check_tree(value, depth=1)
    return value


def needs_walk(data: bytes) -> bool:
    """Whether the depth and the strings of parsed JSON are to be checked one by one.

    Without a suspicious escape and with few brackets none can be wrong, and a walk takes twice as long as the parser.
    """
    return data.count(b"{") + data.count(b"[") > MAX_DEPTH or SUSPECT_ESCAPE.search(data) is not None


def decode_json(data: bytes) -> Any:
    """Parse JSON as its standard has it: one line, or the body of a request.

    Raises LineError for invalid UTF-8, a BOM, NaN or infinity, a duplicate key, numbers beyond int64 or double, and
    nesting that exhausts the parser. The strings in it are still to be checked, by who knows where they stand.
    """
    text = _decode(data)
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise LineError(f"nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise LineError(f"not valid JSON: {syntax_error_text(error)}") from error


def check_text(text: str) -> None:
    """Raises LineError for what PostgreSQL refuses in a string."""
    if "\x00" in text:
        raise LineError("a NUL character (\\u0000) inside a string")
    try:
        text.encode()  # thirty times as fast as a loop over the characters
    except UnicodeEncodeError as error:
        raise LineError("a lone surrogate (\\ud800 to \\udfff without its partner) inside a string") from error


def json_type(value: Any) -> str:
    """What JSON calls the type of a parsed value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def quote(text: str) -> str:
    """A client's word as it may stand in a message: escaped, and at most 40 characters of it."""
    return json.dumps(text if len(text) <= 40 else text[:40] + "…")


def names(words: Iterable[str], most: int = 8) -> str:
    """Some keys or roles as they may stand in a message: sorted, quoted, at most `most`."""
    return ", ".join(quote(word) for word in sorted(words)[:most]) or "none"


def _parse_line(number: int, line: bytes) -> Line | Finding:
    try:
        return Line(number, parse_object(line))
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


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise LineError(f"the number {text[:40]} is too large for a double")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or not -INT64 <= int(text) < INT64:
        raise LineError(f"the number {text[:40]} is outside the 64-bit integers")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = _first_repeated(name for name, _ in pairs)
        raise LineError(f"the key {quote(twice)} appears twice in one object; keep one of them")
    return value


def _first_repeated(names: Iterable[str]) -> str:
    """Return the first name that equals an earlier one. An object may have half a million keys: one pass, no count."""
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
    parse_constant=_refuse_constant, parse_float=_finite, parse_int=_int64, object_pairs_hook=_unique
)  # built once: json.loads would build one for every line


def _skip_rest_of_line(file: BinaryIO) -> None:
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass
