"""Bodies of trial answers with very many problems: the check ends at the first ones, whatever the field."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from app.api.routes.answers import _trial_question
from app.errors import BadRequest
from app.services.answers.answers import Question

COUNT = 100_000
SAY = {"role": "user", "content": "hi"}
MANY_KEYS: dict[str, Any] = {f"key{number}": 0 for number in range(COUNT)}


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("messages", [1] * COUNT, "messages"),
        ("messages", [{}] * COUNT, "messages"),
        ("messages", [SAY | MANY_KEYS], "messages"),
        ("messages", [SAY | {"content": [1] * COUNT}], "messages"),
        ("messages", [SAY | {"content": [{"type": "text", "text": ""} | MANY_KEYS]}], "messages"),
        ("messages", [{"role": "assistant", "tool_calls": [{}] * COUNT}], "messages"),
        ("tools", [1] * COUNT, "tools"),
        ("tools", [{}] * COUNT, "tools"),
        ("stop", [1] * COUNT, "stop.str"),
        ("logit_bias", MANY_KEYS, "logit_bias"),
        ("stream_options", MANY_KEYS, "stream_options"),
        ("response_format", {"type": "text"} | MANY_KEYS, "response_format"),
        ("response_format", {"type": "json_schema", "json_schema": MANY_KEYS}, "response_format.json_schema"),
    ],
)
def test_very_many_problems_of_a_field_cost_no_memory(field: str, value: Any, param: str) -> None:
    check_is_cheap({"model": "tiny", "messages": [SAY], field: value}, param)


def test_very_many_unknown_fields_cost_no_memory() -> None:
    check_is_cheap({"model": "tiny", "messages": [SAY]} | MANY_KEYS, "key0")


def check_is_cheap(body: dict[str, Any], param: str) -> None:
    question = Question("proj", "/v1/chat/completions", body)
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest) as refused:
            _trial_question(question, "tiny")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # 64 bytes an item: the copy of an object
    finally:
        tracemalloc.stop()
    assert refused.value.param == param
    assert len(refused.value.message) < 4_000
