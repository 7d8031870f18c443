"""Long conversations, rendered in parts, in linear instead of quadratic time.

The span of a turn in a conversation's text follows from two texts: of all messages before it, and of those including
it. For a thousand turns these are a thousand renderings of up to a thousand messages. If the template renders a message
independently of the number of earlier messages, it is enough to render a part after a short beginning and the previous
part. This is checked: the concatenated texts of the parts must equal the text of the conversation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from app.domain.datasets.chat_template import Message, TemplateRefused

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
    return [_shortened(message) for message in messages[: first + 1]]


def _shortened(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": message["content"][:BEGINNING_CHARACTERS]}
