"""Events of a stream, whatever the pieces in which they arrive."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.answers import events
from app.domain.answers.events import EventTranslator

CHUNKS = [{"model": "bot", "choices": [{"delta": {"content": text}}]} for text in ("ä\n\n", "bot", "")]
ENDS = (b"\n\n", b"\r\n\r\n", b"\n\n")
STREAM = b"".join(b"data: " + json.dumps(chunk).encode() + end for chunk, end in zip(CHUNKS, ENDS, strict=True))
STREAM = b": ping\n\n" + STREAM + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM))))
def test_pieces_of_any_size_give_the_same_events(cuts: list[int]) -> None:
    places = sorted({0, len(STREAM), *cuts})
    translator = EventTranslator("bot", "ft:a:b::1")
    sent = b"".join(translator.add(STREAM[begin:end]) for begin, end in pairwise(places))
    lines = [line[6:] for line in sent.decode().split("\n") if line.startswith("data: ")]
    assert [json.loads(line) for line in lines[:-1]] == [chunk | {"model": "ft:a:b::1"} for chunk in CHUNKS]
    assert (lines[-1], translator.is_complete) == ("[DONE]", True)


@pytest.mark.parametrize("text", ["a\u2028b\x85c", "\ud83d"], ids=["line separators", "half of a surrogate pair"])
def test_any_text_is_passed_on_in_one_line(text: str) -> None:
    chunk = {"model": "bot", "choices": [{"delta": {"content": text}}]}
    sent = EventTranslator("bot", "ft:x").add(b"data: " + json.dumps(chunk).encode() + b"\n\n").decode()
    assert len(sent.splitlines()) == 2
    assert json.loads(sent.removeprefix("data: ")) == chunk | {"model": "ft:x"}


def test_an_event_that_is_not_complete_is_not_passed_on() -> None:
    translator = EventTranslator("bot", "bot")
    assert translator.add(b'data: {"choices": []}\n\ndata: {"cho') == b'data: {"choices": []}\n\n'
    assert not translator.is_complete


def test_an_error_of_the_engine_has_the_shape_of_openai() -> None:
    translator = EventTranslator("bot", "ft:x")
    sent = translator.add(b'data: {"error": {"message": "bot ran out of memory", "type": "X", "code": 500}}\n\n')
    error = json.loads(sent.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "ft:x ran out of memory",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }


@pytest.mark.parametrize("data", [b"not json", b"[]", b"7", b"\xff", b"[" * 5_000])
def test_an_event_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        EventTranslator("bot", "bot").add(b"data: " + data + b"\n\n")


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        EventTranslator("bot", "bot").add(b"data: 12345678")
