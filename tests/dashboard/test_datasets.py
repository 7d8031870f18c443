"""The page of a dataset: a line of its file, what its report says of a part, and the histogram of lengths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app.web.pages import chat_rows
from app.web.pages.dataset_report import histogram_options, length_facts
from app.web.pages.datasets import LINE_NUMBER
from tests.dashboard.stub_api import stub_client

LINES = [b"first", b"", b"third, which is longer", b"last"]
REPORT: dict[str, Any] = {
    "tokens": {"total": 4_000, "trained": 1_000, "lengths": {"median": 40, "p99": 90, "max": 100}},
    "cut": {"count": 5},
    "duplicates": {"rows": 1},
    "coverage": {"complete": True, "rows": 100, "tokenized_rows": 100},
}
BUCKETS = [
    {"least": 65, "most": 128, "rows": 5},
    {"least": 129, "most": 256, "rows": 144},
    {"least": 257, "most": 512, "rows": 91},
]


def line_of(content: bytes, piece_bytes: int, number: int) -> bytes | None:
    """A line of a file that arrives in pieces."""

    class Pieces(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for start in range(0, len(content), piece_bytes):
                yield content[start : start + piece_bytes]

    api = stub_client(lambda _: httpx2.Response(200, stream=Pieces()))
    return asyncio.run(chat_rows.line_at(api, "file-1", number))


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 6, 7, 100])
def test_a_line_is_found_by_its_number(piece_bytes: int, ending: bytes) -> None:
    content = b"\n".join(LINES) + ending
    assert [line_of(content, piece_bytes, number) for number in (1, 2, 3, 4)] == LINES
    assert line_of(content, piece_bytes, 6) is None


def test_a_huge_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rows, "FIRST_BYTES", 10)
    assert line_of(b"a\n" + b"x" * 100, 7, 2) == b"x" * 10


@pytest.mark.parametrize("text", ["0", "-1", "", "x", "9" * 5_000, "\u0663"])
def test_no_line_is_opened_that_no_file_has(text: str) -> None:
    assert LINE_NUMBER.fullmatch(text) is None
    assert LINE_NUMBER.fullmatch("49999")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, [("user", 'a\n{"name": "Ann"}')]),
        ({"prompt": "a", "completion": ["b"]}, [("user", "a"), ("assistant", '["b"]')]),
        ({"input": {"messages": [{"role": "user", "content": None}]}, "preferred_output": "b"},
         [("user", ""), ("preferred", "b")]),
        ({"text": "a"}, [("text", "a")]),
        ({"messages": "none"}, [("text", '{"messages": "none"}')]),
        ("no JSON", [("text", "no JSON")]),
    ],
)  # fmt: skip
def test_a_row_of_any_format_is_a_chat(row: Any, messages: list[tuple[str, str]]) -> None:
    assert chat_rows._messages(row) == messages


@pytest.mark.parametrize(
    ("coverage", "shown"),
    [
        ({}, {"Rows": "100", "Tokens per epoch": "4,000", "Truncated": "5 rows (5.0 %)"}),
        (
            {"complete": False, "tokenized_rows": 50},
            {"Rows read": "100", "Tokens of 50 rows": "4,000", "Truncated": "5 rows (10.0 %)"},
        ),
    ],
)
def test_a_sample_has_the_tokens_and_the_share_of_its_rows(coverage: dict[str, Any], shown: dict[str, str]) -> None:
    facts = length_facts(REPORT | {"coverage": REPORT["coverage"] | coverage})
    assert {name: facts.get(name) for name in shown} == shown


@pytest.mark.parametrize(("context_length", "place"), [(128, 1.0), (192, 1.5), (512, 3.0), (64, 0.0), (2_048, None)])
def test_the_context_length_is_drawn_in_its_place_within_a_bar(context_length: int, place: float | None) -> None:
    line = histogram_options(BUCKETS, context_length)["series"][1]["markLine"]
    assert line["data"] == ([] if place is None else [{"xAxis": place}])


def test_bars_beyond_the_context_length_have_the_colour_of_a_warning() -> None:
    bars = histogram_options(BUCKETS, 256)["series"][0]["data"]
    assert ["warn" in bar["itemStyle"][":color"] for bar in bars] == [False, False, True]
