"""`chat_template_kwargs` of a row: what is refused, what wins, and what has no effect."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets.examples import MAX_LINE_BYTES, Example, read_examples
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.report import build_report
from app.domain.datasets.template_arguments import MAX_DOCUMENTS, MAX_DOCUMENTS_BYTES, ChatTemplateArguments
from app.domain.jobs.spec import DataParameters
from app.system.tokenizer_files import load_renderer
from tests.datasets.families import CHATML, QWEN_3, Family, make_tokenizer, write_family
from tests.sentences import Reviewed

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {
    "input": {"messages": CHAT["messages"][:1]},
    "preferred_output": CHAT["messages"][1:],
    "non_preferred_output": [{"role": "assistant", "content": "c"}],
}
NO_THINKING = ChatTemplateArguments(enable_thinking=False)


def read(row: dict[str, Any], parameters: DataParameters) -> list[Example | Finding]:
    return list(read_examples(io.BytesIO(json.dumps(row).encode()), MAX_LINE_BYTES, parameters))


@pytest.mark.parametrize("given", [
    {"enable_thinkin": True, "effort": "low"}, {"enable_thinking": 1}, {"enable_thinking": "no"}, [], "low",
    {"reasoning_effort": "very high"}, {"reasoning_effort": "a" * 33}, {"reasoning_effort": 1},
    {"documents": "text"}, {"documents": ["text"]}, {"documents": [{"text": 1}]}, {"documents": [{}]},
    {"documents": [{"text": "a"}] * (MAX_DOCUMENTS + 1)}, {"documents": [{str(key): "a" for key in range(17)}]},
    {"documents": [{"text": "a" * MAX_DOCUMENTS_BYTES}]}, {str(key): 1 for key in range(1000)},
], ids=str)  # fmt: skip
def test_what_no_template_takes_is_a_finding(given: Any) -> None:
    found = read(CHAT | {"chat_template_kwargs": given}, DataParameters())
    assert found
    assert {each.code for each in found if isinstance(each, Finding)} == {"invalid_chat_template_kwargs"}


def test_an_unknown_key_is_named_with_the_known_ones(reviewed: Reviewed) -> None:
    (found,) = read(CHAT | {"chat_template_kwargs": {"enable_thinkin": True}}, DataParameters())
    assert isinstance(found, Finding)
    reviewed(found.message)


@pytest.mark.parametrize("row", [{"prompt": "a", "completion": "b"}, {"text": "a"}])
def test_a_row_without_messages_takes_none(row: dict[str, Any]) -> None:
    found = read(row | {"chat_template_kwargs": {}}, DataParameters())
    assert [each.code for each in found if isinstance(each, Finding)] == ["extra_key"]


@pytest.mark.parametrize(("row", "method"), [(CHAT, "supervised"), (PAIR, "dpo")])
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, {"enable_thinking": False}),
        ({"enable_thinking": None}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"reasoning_effort": "low"}, {"enable_thinking": False, "reasoning_effort": "low"}),
    ],
)
def test_a_row_wins_over_its_job_key_by_key(
    row: dict[str, Any], method: Any, own: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    parameters = DataParameters(method=method, chat_template_kwargs=NO_THINKING)
    (example,) = read(row | {"chat_template_kwargs": own}, parameters)
    assert isinstance(example, Example)
    assert example.chat_template_kwargs is not None
    assert example.chat_template_kwargs.model_dump() == expected


@pytest.mark.parametrize(
    ("template", "parameters", "own", "unread"),
    [
        (QWEN_3, DataParameters(chat_template_kwargs=NO_THINKING), {}, {}),
        (CHATML, DataParameters(chat_template_kwargs=NO_THINKING), {}, {"unread_enable_thinking": 2}),
        (QWEN_3, DataParameters(), {"reasoning_effort": "low"}, {"unread_reasoning_effort": 1}),
        (CHATML, DataParameters(), {}, {}),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_a_warning(
    tmp_path: Path, template: str, parameters: DataParameters, own: dict[str, Any], unread: dict[str, int]
) -> None:
    family = Family("it", template, "<|im_end|>", "<|im_end|>")
    renderer = load_renderer(write_family(tmp_path, family, make_tokenizer()))
    lines = [CHAT, CHAT | {"chat_template_kwargs": own}]
    file = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    report = build_report(renderer, parameters, MAX_LINE_BYTES, file)
    lines_by_code = report.warning_lines
    assert {code: each.count for code, each in lines_by_code.items() if code.startswith("unread_")} == unread
    assert ("duplicate_rows" in lines_by_code) == (not own)  # rows of other arguments are other rows
