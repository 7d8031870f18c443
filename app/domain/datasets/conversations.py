"""Conversations in a chat template: long ones in parts, in linear time, and checks that the template prints all of one.

What a template omits is refused, with a remedy.

The span of a turn in a conversation's text follows from two texts: of all messages before it, and of those including
it. For a thousand turns these are a thousand renderings of up to a thousand messages. If the template renders a message
independently of the number of earlier messages, it is enough to render a part after a short beginning and the previous
part. This is checked: the concatenated texts of the parts must equal the text of the conversation.

A template is rendered, not parsed: if the text is the same without a call, a tool or reasoning, the template does not
print it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from app.domain.datasets.chat_template import Message, TemplateRefused
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.error_text.json_text import as_json

PART_MESSAGES = 16
BEGINNING_MESSAGES = 4  # the first user message is searched in so many
BEGINNING_CHARACTERS = 200  # of each message in a shortened beginning
STUB_TOOL: Message = {
    "type": "function",
    "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
}


class Span(NamedTuple):
    """Characters of a rendered text, from `start` to `end` (exclusive)."""

    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """The messages from `begin` to `end` of a conversation; `window` ends with them."""

    begin: int
    end: int
    window: list[Message]
    tools: Sequence[Message]

    @property
    def offset(self) -> int:
        """The index in the conversation of the window's first message, if the window were contiguous."""
        return self.end - len(self.window)

    @property
    def turns(self) -> range:
        """The indices of this part's messages in the conversation; the methods below take such indices."""
        return range(self.begin, self.end)

    @classmethod
    def whole(cls, messages: list[Message], tools: Sequence[Message]) -> Part:
        return cls(0, len(messages), messages, tools)

    def message(self, turn: int) -> Message:
        return self.window[turn - self.offset]

    def before(self, turn: int) -> list[Message]:
        return self.window[: turn - self.offset]

    def through(self, turn: int) -> list[Message]:
        return self.window[: turn - self.offset + 1]


def split_conversation(messages: Sequence[Message], tools: Sequence[Message]) -> Iterator[Part]:
    """Yield the parts in order. The first two follow the real beginning, the others a shortened one."""
    boundaries = list(_boundaries(messages))
    head = _short_beginning(messages)
    for number, (begin, end) in enumerate(pairwise(boundaries)):
        if number < 2:
            yield Part(begin, end, list(messages[:end]), tools)
        else:
            yield Part(begin, end, [*head, *messages[boundaries[number - 1] : end]], [STUB_TOOL] if tools else [])


def spans_by_parts(
    text: Callable[[Sequence[Message], Sequence[Message]], str],
    span: Callable[[list[Message], int, Sequence[Message], str], Span | None],
    parts: Sequence[Part],
    trained: Sequence[int],
    conversation_text: str,
) -> list[Span] | None:
    """The spans of the messages `trained` (indices in order) in `conversation_text`; None if the parts do not match it.

    `text` renders messages and tools; `span` returns the span of one message of a list in the text of that list.
    """
    spans: list[Span] = []
    position, waiting = 0, list(reversed(trained))
    try:
        for part in parts:
            local = text(part.window, part.tools)
            before = text(part.window[: part.begin - part.offset], part.tools) if part.begin else ""
            printed = local[len(before) :]
            if not local.startswith(before) or not conversation_text.startswith(printed, position):
                return None
            while waiting and waiting[-1] < part.end:
                found = span(part.window, waiting.pop() - part.offset, part.tools, local)
                if found is None:
                    return None
                moved = position - len(before)
                spans.append(Span(found.start + moved, found.end + moved))
            position += len(printed)
    except TemplateRefused:  # the template may require another order of roles
        return None
    return spans if position == len(conversation_text) else None


def within_spans(starts: Sequence[int], spans: Sequence[Span]) -> list[bool]:
    """For each character, whether it is in one of the spans, in O(n log n) time."""
    ordered = sorted(spans, key=lambda span: span.start)
    begins = [span.start for span in ordered]
    ends = [0, *accumulate((span.end for span in ordered), max)]  # maximum end of the spans up to each one
    return [start < ends[bisect_right(begins, start)] for start in starts]


def _boundaries(messages: Sequence[Message]) -> Iterator[int]:
    """The boundaries of the parts: before answers, so that an answer follows the user message of the beginning."""
    yield 0
    last = 0
    for index in range(1, len(messages)):
        length = index - last
        is_answer = messages[index]["role"] == "assistant" and messages[index - 1]["role"] != "assistant"
        if length >= 4 * PART_MESSAGES or (length >= PART_MESSAGES and is_answer):
            yield index
            last = index
    yield len(messages)


def _short_beginning(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the first user message, shortened: a system prompt may have a megabyte."""
    first = next((i for i, message in enumerate(messages[:BEGINNING_MESSAGES]) if message["role"] == "user"), -1)
    return [
        {"role": message["role"], "content": message["content"][:BEGINNING_CHARACTERS]}
        for message in messages[: first + 1]
    ]


# Renderer.renders_differently: (messages, tools, fewer messages, fewer tools) -> whether their texts differ
RendersDifferently = Callable[[list[Message], Sequence[Message], list[Message], Sequence[Message]], bool]


class ToolsNotPrinted(TemplateRefused):
    """The template has no place for tools."""


def check_tools(prints: RendersDifferently, messages: list[Message], tools: Sequence[Message]) -> None:
    """Raise ToolsNotPrinted for tools that the template does not print."""
    if tools and not prints(messages, tools, messages, ()):
        text = _not_printed_text("tools", "the tools of this line would be left out", "describe them in a message")
        raise ToolsNotPrinted(text)


def check_context_messages(prints: RendersDifferently, part: Part, trained: Collection[int]) -> None:
    """Raise TemplateRefused for tool results, and for untrained reasoning and calls, that the template does not print.

    `trained` are indices of the conversation.
    """
    for turn in part.turns:
        message, before, through = part.message(turn), part.before(turn), part.through(turn)
        if message["role"] == "tool" and not prints(through, part.tools, before, part.tools):
            left_out = f"message {turn + 1} would be left out"
            raise TemplateRefused(_not_printed_text("the results of tools", left_out, "write it as a user's message"))
        if message["role"] == "assistant" and turn not in trained:
            check_reasoning(prints, part, turn)
        if message.get("tool_calls") and turn not in trained:
            without_calls = {key: value for key, value in message.items() if key != "tool_calls"}
            if not prints(through, part.tools, [*before, without_calls], part.tools):
                what = f"the call of message {turn + 1} would be left out"
                raise TemplateRefused(_not_printed_text("tool calls", what, "write the call into the content"))


def check_reasoning(prints: RendersDifferently, part: Part, turn: int, trained_text: str = "") -> None:
    """Raise TemplateRefused for reasoning that the template does not print, or not in `trained_text`, if given."""
    message, before, tools = part.message(turn), part.before(turn), part.tools
    for key in REASONING_KEYS:
        reasoning = message.get(key, "").strip()
        if not reasoning:
            continue
        without = {name: value for name, value in message.items() if name != key}
        is_printed = prints([*before, message], tools, [*before, without], tools)
        if is_printed and (not trained_text or reasoning in trained_text):
            continue
        raise TemplateRefused(
            f"message {turn + 1}: the model's chat template does not print {key}, so it would be left out; write it "
            f"into the content as the template writes it, or choose a model whose template prints {key}"
        )


def check_trained_calls(message: Message, turn: int, trained_text: str) -> None:
    """Raise TemplateRefused for a call whose name is not in `trained_text`, the text of its turn.

    A template prints calls in order, so each search starts at the previous call: a message may have thousands.
    """
    position = 0
    for call in message.get("tool_calls", ()):
        name = call["function"]["name"]
        position = trained_text.find(name, position)
        if position < 0:
            position = trained_text.find(name)
        if position < 0:
            raise _call_not_printed_error(turn, call)


def check_each_call(prints: RendersDifferently, part: Part, trained: Collection[int]) -> None:
    """Raise TemplateRefused for a trained call that the template does not print.

    The name of the call may also be in the content, and a template may print only the first of several calls. Only the
    first and the last call of a message are checked: checking all of them would take quadratic time.
    """
    for turn in part.turns:
        message, before = part.message(turn), part.before(turn)
        calls = message.get("tool_calls", []) if turn in trained else []
        for number in sorted({0, len(calls) - 1}) if calls else ():
            others = {"tool_calls": rest} if (rest := calls[:number] + calls[number + 1 :]) else {}
            fewer = {key: value for key, value in message.items() if key != "tool_calls"} | others
            if not prints([*before, message], part.tools, [*before, fewer], part.tools):
                raise _call_not_printed_error(turn, calls[number])


def _call_not_printed_error(turn: int, call: Message) -> TemplateRefused:
    name = as_json(call["function"]["name"])
    return TemplateRefused(
        f"message {turn + 1}: the model's chat template does not print tool calls, so {name} "
        "would not be trained; write the call into the content, or choose a base model whose template supports tools"
    )


def _not_printed_text(what: str, left_out: str, instead: str) -> str:
    return (
        f"the model's chat template does not print {what}, so {left_out}; {instead}, or choose a base model whose "
        "template supports tools"
    )
