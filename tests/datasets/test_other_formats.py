"""A table, a workbook or a JSON array is one finding that names it, wherever lines are read."""

from __future__ import annotations

import io

import pytest

from app.domain.datasets.jsonl import OTHER_FORMAT, SAMPLE_BYTES, UTF8_BOM, Finding, read_lines
from tests.factories import chat_lines

ROWS = b'{"prompt": "a"},\n' * 20


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"text,category\nHello,x\n", 'a CSV with the columns "text", "category",'),
        (UTF8_BOM + b"text;category\r\nHello;x\r\n", 'a CSV with the columns "text", "category",'),
        (b'"the text","a, b"\n', 'a CSV with the columns "the text"'),
        (b"text\tcategory\nHello\tx\n", 'a TSV with the columns "text", "category",'),
        (b",".join([b"c"] * SAMPLE_BYTES), "…, but every line"),
        (b"PK\x03\x04\x14\x00\x06\x00" + b"\xff" * 100, "an Excel workbook"),
        (b"[\n" + ROWS + b"]", "a JSON array of all examples"),
        (b'[{"prompt": "a"}]\n', "a JSON array of all examples"),
        (b"[" + ROWS.replace(b"\n", b"") * 100, "a JSON array of all examples"),
    ],
)
def test_a_file_of_another_format_is_named_once(content: bytes, seen: str) -> None:
    [found] = read_lines(io.BytesIO(content), max_line_bytes=5_000)
    assert isinstance(found, Finding)
    assert (found.line, found.code, seen in found.message) == (1, OTHER_FORMAT, True), found


@pytest.mark.parametrize(
    "content",
    [
        chat_lines(2),
        b"not json\n",
        b'"a, b"\n',  # one string of JSON
        b'"prompt": "a", "completion": "b"}\n',  # an object that lost its brace
        b"[1, 2]\n",
        b"\x00,\x01,\n",
        b"",
    ],
)
def test_other_lines_have_findings_of_their_own(content: bytes) -> None:
    codes = {item.code for item in read_lines(io.BytesIO(content)) if isinstance(item, Finding)}
    assert codes <= {"invalid_line"}
