"""Long conversations, rendered part by part: the work grows with their length, not with its square.

Where a turn stands in a conversation's text follows from two texts: of all messages before it, and of those with it.
For a thousand turns that is a thousand renderings of up to a thousand messages. A part of the conversation, rendered
behind a short beginning and the part before it, gives the same, if the template prints a message without regard to how
many came earlier. That is checked: the texts of the parts, put together, have to be the whole text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from app.domain.datasets.chat_template import Message, TemplateRefused

PART_MESSAGES = 16
HEAD_MESSAGES = 4  # the first message of a user is looked for among so many
HEAD_CHARACTERS = 200  # of each message in a beginning that stands for the real one
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
    """Messages from `begin` to `end` of a conversation, as the last ones of `window`."""

    begin: int
    end: int
    window: list[Message]
    tools: Sequence[Message]

    @property
    def offset(self) -> int:
        """The index in the conversation of what is at 0 in the window, were it all of one piece."""
        return self.end - len(self.window)

    @property
    def turns(self) -> range:
        """The messages of this part by their indices in the conversation, which the methods below take, too."""
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


def parts(messages: Sequence[Message], tools: Sequence[Message]) -> Iterator[Part]:
    """Yield the parts in order. The first two stand behind the real beginning, the others behind a short one."""
    borders = list(_borders(messages))
    head = _head(messages)
    for number, (begin, end) in enumerate(pairwise(borders)):
        if number < 2:
            yield Part(begin, end, list(messages[:end]), tools)
        else:
            yield Part(begin, end, [*head, *messages[borders[number - 1] : end]], [STUB_TOOL] if tools else [])


def spans_by_parts(
    text: Callable[[Sequence[Message], Sequence[Message]], str],
    span: Callable[[list[Message], int, Sequence[Message], str], Span | None],
    cut: Sequence[Part],
    learned: Sequence[int],
    whole: str,
) -> list[Span] | None:
    """Return where the messages `learned` (indices in order) stand in `whole`; None where the parts do not tell.

    `text` renders messages and tools; `span` finds one message of a list in the text of that list.
    """
    spans: list[Span] = []
    position, waiting = 0, list(reversed(learned))
    try:
        for part in cut:
            local = text(part.window, part.tools)
            before = text(part.window[: part.begin - part.offset], part.tools) if part.begin else ""
            printed = local[len(before) :]
            if not local.startswith(before) or not whole.startswith(printed, position):
                return None
            while waiting and waiting[-1] < part.end:
                found = span(part.window, waiting.pop() - part.offset, part.tools, local)
                if found is None:
                    return None
                moved = position - len(before)
                spans.append(Span(found.start + moved, found.end + moved))
            position += len(printed)
    except TemplateRefused:  # a template may want another order of roles than a part has
        return None
    return spans if position == len(whole) else None


def are_within(starts: Sequence[int], spans: Sequence[Span]) -> list[bool]:
    """For each character whether one of the spans has it; both may be many."""
    ordered = sorted(spans, key=lambda span: span.start)
    begins = [span.start for span in ordered]
    ends = [0, *accumulate((span.end for span in ordered), max)]  # of all spans up to each one
    return [start < ends[bisect_right(begins, start)] for start in starts]


def _borders(messages: Sequence[Message]) -> Iterator[int]:
    """Where parts begin: at an answer, so that a user's message at the end of the beginning is followed by one."""
    yield 0
    last = 0
    for index in range(1, len(messages)):
        length = index - last
        is_answer = messages[index]["role"] == "assistant" and messages[index - 1]["role"] != "assistant"
        if length >= 4 * PART_MESSAGES or (length >= PART_MESSAGES and is_answer):
            yield index
            last = index
    yield len(messages)


def _head(messages: Sequence[Message]) -> list[Message]:
    """The messages up to the first of a user, shortened: a system prompt may have a megabyte."""
    first = next((i for i, message in enumerate(messages[:HEAD_MESSAGES]) if message["role"] == "user"), -1)
    return [_shortened(message) for message in messages[: first + 1]]


def _shortened(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": message["content"][:HEAD_CHARACTERS]}
