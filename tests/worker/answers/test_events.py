"""Events of a stream, whatever the pieces in which they arrive."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.answers.engine_answers import MAX_ANSWER_BYTES, EventTranslator


def translated(translator: EventTranslator, chunk: bytes) -> bytes:
    return b"".join(map(translator.translate, translator.add(chunk)))


CHUNKS = [{"model": "bot", "choices": [{"delta": {"content": text}}]} for text in ("ä\n\n", "bot", "")]
ENDS = (b"\n\n", b"\r\n\r\n", b"\n\n")
STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + end for chunk, end in zip(CHUNKS, ENDS, strict=True))
STREAM = b": ping\n\n" + STREAM + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM))))
def test_pieces_of_any_size_give_the_same_events(cuts: list[int]) -> None:
    places = sorted({0, len(STREAM), *cuts})
    translator = EventTranslator("bot", "ft:a:b::1")
    sent = b"".join(translated(translator, STREAM[begin:end]) for begin, end in pairwise(places))
    lines = [line[6:] for line in sent.decode().split("\n") if line.startswith("data: ")]
    assert [json.loads(line) for line in lines[:-1]] == [chunk | {"model": "ft:a:b::1"} for chunk in CHUNKS]
    assert (lines[-1], translator.is_complete) == ("[DONE]", True)


@pytest.mark.parametrize("text", ["a\u2028b\x85c", "\ud83d"], ids=["line separators", "half of a surrogate pair"])
def test_any_text_is_passed_on_in_one_line(text: str) -> None:
    chunk = {"model": "bot", "choices": [{"delta": {"content": text}}]}
    sent = translated(EventTranslator("bot", "ft:x"), b"data: " + json.dumps(chunk).encode() + b"\n\n").decode()
    assert len(sent.splitlines()) == 2
    assert json.loads(sent.removeprefix("data: ")) == chunk | {"model": "ft:x"}


def test_an_event_that_is_not_complete_is_not_passed_on() -> None:
    translator = EventTranslator("bot", "bot")
    assert translated(translator, b'data: {"choices": []}\n\ndata: {"cho') == b'data: {"choices": []}\n\n'
    assert not translator.is_complete


def test_an_error_of_the_engine_has_the_shape_of_openai() -> None:
    translator = EventTranslator("bot", "ft:x")
    sent = translated(translator, b'data: {"error": {"message": "bot is full", "type": "X", "code": 500}}\n\n')
    error = json.loads(sent.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "ft:x is full",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }


@pytest.mark.parametrize("data", [b"not json", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_an_event_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        translated(EventTranslator("bot", "bot"), b"data: " + data + b"\n\n")


def test_an_event_without_end_is_refused_in_linear_time() -> None:
    """In chunks of 1 KiB, 8 MiB took more than a minute when each chunk copied and searched all before it."""
    translator, began = EventTranslator("bot", "bot"), time.process_time()
    for _ in range(MAX_ANSWER_BYTES >> 10):
        assert translator.add(b"x" * 1024) == []
    with pytest.raises(ValueError, match=f"more than {MAX_ANSWER_BYTES:,} bytes"):
        translator.add(b"x")
    assert time.process_time() - began < 5
