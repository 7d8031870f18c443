"""Bodies of trial answers: parameters that would be ignored are refused, and the check ends at the first problems."""

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


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


def schema_format(schema: Any, name: str = "answer") -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look_up"}}}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"functions": [{"name": "look_up"}]}, "functions"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}, "tools": TOOLS}, "response_format"),
        ({"response_format": schema_format({"enum": ["x" * 120_000]})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format({}, name="a b")}, "response_format.json_schema.name"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        *(({"prompt": prompt}, "prompt") for prompt in (["a", "b"], [1, 2], [[1], [2]])),
    ],
)
def test_parameters_that_would_be_ignored_are_refused(fields: dict[str, Any], param: str) -> None:
    path = "/v1/completions" if param == "prompt" else "/v1/chat/completions"
    body = {"model": "tiny"} | ({"messages": [SAY]} if param != "prompt" else {}) | fields
    with pytest.raises(BadRequest) as refused:
        _trial_question(Question("proj", path, body), "tiny")
    assert refused.value.param == param
    assert param != "prompt" or refused.value.code == "unsupported_parameter"


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
