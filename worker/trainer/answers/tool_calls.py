"""Tool calls in a generated text, by the response template of the base model's tokenizer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing import parse_response

from app.domain.answers.trial import GeneratedToolCall
from app.domain.datasets.messages import REASONING_KEYS

HERMES_CALL = "<tool_call>"
DESCRIBED_HERMES_CALL = re.compile(r"<tool_call>\s*\{")
THINK = "<think>"
KEYS = frozenset({"role", "content", "tool_calls", *REASONING_KEYS})


@dataclass(frozen=True)
class AnswerWithCalls:
    content: str
    reasoning: str
    tool_calls: tuple[GeneratedToolCall, ...]


@dataclass(frozen=True)
class AnswerParser:
    template: dict[str, Any]
    prompt: str  # it may have the beginning of the answer
    tools: Sequence[dict[str, Any]]

    def parse(self, text: str) -> AnswerWithCalls | None:
        """The parts of `text`, which has its special tokens; None if it has no calls, or not the template's form."""
        try:
            message = parse_response(text, self.template, prefix=self.prompt, tools=list(self.tools))
            calls = tuple(_call(call["function"]) for call in message.get("tool_calls", ()))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            print(f"the answer does not have the form of the response template: {error}", file=sys.stderr)
            return None
        if not calls or not message.keys() <= KEYS:
            return None
        reasoning = "".join(str(message.get(key) or "") for key in REASONING_KEYS)
        return AnswerWithCalls(str(message.get("content") or "").strip(), reasoning, calls)


def hermes_parser(prompt: str, tools: Sequence[dict[str, Any]], stops: Sequence[str]) -> AnswerParser | None:
    """For the form of Hermes and Qwen, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    None if the prompt does not describe it: the chat template has another form.
    """
    if not DESCRIBED_HERMES_CALL.search(prompt):
        return None
    template = {
        "start_anchor": "<|im_start|>assistant\n",  # required; what is left of the prompt does not have it
        "fields": {
            "reasoning_content": {"open": THINK, "close": "</think>", "content": "text"},
            "tool_calls": {
                "open": HERMES_CALL,
                "close": "</tool_call>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"content": "text", "repeats": True, "join": "\n"} | ({"close": list(stops)} if stops else {}),
        },
    }
    return AnswerParser(template, THINK if prompt.rstrip().endswith(THINK) else "", tools)


def _call(function: dict[str, Any]) -> GeneratedToolCall:
    """Raises ValueError for one without a name or with arguments that are no object."""
    name, arguments = function["name"], function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"a call must have a name and an object of arguments, not {function}")
    return GeneratedToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
