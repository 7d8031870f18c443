"""Tool calls in a generated text: what a response template finds, and what stays text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.answers.trial import TrialQuestion, TrialRecord
from app.system.tokenizer_files import load_renderer
from tests.tiny import make_tiny_base
from worker.trainer.answers.tool_calls import AnswerParser, hermes_parser
from worker.trainer.answers.trial import AnswerWriter, Questions

PROMPT = "<|im_start|>user\nHow warm is it?<|im_end|>\n<|im_start|>assistant\n"
PARAMETERS = {"properties": {"day": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
TEMPLATE: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Łódź", "day": 2}}</tool_call>'
PARSER = AnswerParser(TEMPLATE, PROMPT, TOOLS)


def test_content_reasoning_and_calls() -> None:
    answer = PARSER.parse(f"<think>It depends.</think>I look.{CALL}{CALL}<|im_end|>")
    assert answer is not None
    assert (answer.content, answer.reasoning) == ("I look.", "It depends.")
    assert [json.loads(call.arguments) for call in answer.tool_calls] == [{"city": "Łódź", "day": 2}] * 2
    assert {call.name for call in answer.tool_calls} == {"weather"}


def test_the_prompt_may_have_the_beginning_of_the_answer() -> None:
    answer = AnswerParser(TEMPLATE, PROMPT + "<think>\n", TOOLS).parse(f"It depends.</think>{CALL}<|im_end|>")
    assert answer is not None
    assert (answer.content, answer.reasoning) == ("", "It depends.")


@pytest.mark.parametrize(
    "text",
    [
        "It is warm.<|im_end|>",
        "<think>Hm.</think>It is warm.<|im_end|>",
        '<tool_call>{"name": "weather", "arguments": {"ci',  # cut
        "<tool_call>weather()</tool_call>",
        '<tool_call>["weather"]</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "warm"}</tool_call>',
        "<tool_call>" + "[" * 5_000,
        "",
    ],
)
def test_without_a_call_or_with_one_of_another_form_it_stays_text(text: str) -> None:
    assert PARSER.parse(text) is None


class TestHermes:
    FORM = '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'  # Qwen3's words
    PROMPT = f"<|im_start|>system\nWithin <tool_call></tool_call> XML tags:\n{FORM}<|im_end|>\n{PROMPT}"

    @pytest.mark.parametrize(
        ("prompt", "text", "content", "reasoning", "calls"),
        [
            (PROMPT, f"{CALL}<|im_end|>", "", "", 1),
            (PROMPT, f"I look.\n{CALL}\n{CALL}\n<|im_end|>", "I look.", "", 2),
            (PROMPT, f"<think>\nIt depends.\n</think>\n\n{CALL}<|im_end|>", "", "It depends.", 1),
            (PROMPT + "<think>\n", f"It depends.\n</think>\n\n{CALL}<|im_end|>", "", "It depends.", 1),
            (PROMPT + "<think>\n\n</think>\n\n", CALL, "", "", 1),
        ],
    )
    def test_content_reasoning_and_calls(
        self, prompt: str, text: str, content: str, reasoning: str, calls: int
    ) -> None:
        parser = hermes_parser(prompt, TOOLS, ["<|im_end|>"])
        assert parser is not None
        answer = parser.parse(text)
        assert answer is not None
        assert (answer.content, answer.reasoning) == (content, reasoning)
        assert [json.loads(call.arguments) for call in answer.tool_calls] == [{"city": "Łódź", "day": 2}] * calls

    @pytest.mark.parametrize(
        "text",
        [
            "It is warm.<|im_end|>",
            CALL[:-20],  # cut
            "<tool_call>\n<function=weather>\n<parameter=city>\nŁódź\n</parameter>\n</function>\n</tool_call>",
        ],
    )
    def test_another_form_stays_text(self, text: str) -> None:
        parser = hermes_parser(self.PROMPT, TOOLS, [])
        assert parser is not None
        assert parser.parse(text) is None

    @pytest.mark.parametrize("form", ["", "<tool_call>\n<function=weather>\n</function>\n</tool_call>"])
    def test_a_prompt_that_describes_another_form_has_no_parser(self, form: str) -> None:
        assert hermes_parser(form + PROMPT, TOOLS, []) is None


@pytest.mark.parametrize("template", [{}, {"fields": {}}, TEMPLATE | {"version": 9}, {"fields": {"content": {}}}])
def test_a_template_that_transformers_refuses_leaves_the_text(template: dict[str, Any]) -> None:
    assert AnswerParser(template, PROMPT, TOOLS).parse(CALL) is None


def test_a_part_of_the_answer_without_a_place_in_the_message_leaves_the_text() -> None:
    fields = TEMPLATE["fields"] | {"citation": {"open": "[[", "close": "]]", "content": "text"}}
    assert AnswerParser(TEMPLATE | {"fields": fields}, PROMPT, TOOLS).parse(f"[[page 3]]{CALL}") is None


@pytest.mark.parametrize(
    ("text", "stop", "content", "calls", "finish_reason"),
    [
        (f"I look.{CALL}<|im_end|>", [], "I look.", 1, "tool_calls"),
        (f"I look.{CALL}", [], "I look.", 1, "length"),
        (f"{CALL} enough", ["enough"], "", 1, "tool_calls"),
        ("It is warm.<|im_end|>", [], "It is warm.", 0, "stop"),
        (f"I look.{CALL}<|im_end|>", ["Łódź"], f"I look.{CALL[: CALL.index('Łódź')]}", 0, "stop"),
    ],
)
def test_what_is_written_at_the_end(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    stop: list[str],
    content: str,
    calls: int,
    finish_reason: str,
) -> None:
    renderer = load_renderer(make_tiny_base(tmp_path))
    question = TrialQuestion(
        id="q", project_id="p", model="m", messages=[], prompt=None, max_new_tokens=256, temperature=0, top_p=1,
        seed=None, stop=stop, tools=tuple(TOOLS),
    )  # fmt: skip
    writer = AnswerWriter(question, 0, time.monotonic() + 60, renderer, Questions.__new__(Questions), PARSER)
    writer.put(torch.tensor([renderer.encode(PROMPT)]))
    for token in renderer.encode(text):
        writer.put(torch.tensor([token]))
        if writer.has_stopped:
            break
    assert capsys.readouterr().out == ""
    writer.end()
    (record,) = [TrialRecord.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert (record.text, len(record.tool_calls), writer.finish_reason) == (content, calls, finish_reason)
