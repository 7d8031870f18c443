"""Warnings: properties of a dataset that are valid but probably unintended.

A finding fails the job; a warning is in the report of a file, in an event of the job and in the job's `warnings`. Those
about the request are also in its plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.datasets.chat_template import Message, content_text
from app.domain.datasets.examples import Example
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.datasets.render import Renderer
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.methods import METHODS, MethodName

UNREAD = "unread_"  # and the name of an argument of the chat template
MAX_FIRST_LINES = 10
# Of the weighted desirable to the weighted undesirable answers. TRL advises 1 to 4/3; twice as far off is warned of.
MIN_LABEL_RATIO, MAX_LABEL_RATIO = 1 / 2, 8 / 3
MAX_INDEXED_ROWS = 1_000_000  # distinct rows, about 110 bytes each; later rows are only compared with them

MESSAGES = {
    "cut": (
        "examples longer than context_length ({context_length:,} tokens), truncated at their end: {lines}. Shorten "
        "them, or raise hyperparameters.context_length"
    ),
    "empty": "{nothing}, which do not contribute: {lines}",
    "empty_answer": (
        "rows with an empty answer: {lines}. The model learns to give an empty answer; fill in the answers, or remove "
        "the rows"
    ),
    "duplicate_rows": (
        "rows that repeat an earlier row: {lines}. They have more weight in training; remove unintended duplicates"
    ),
    "overlap": (
        "rows of the validation file that are also in the training file: {lines} of {rows:,} different rows. The "
        "validation loss of memorized rows is too low; use a file of other rows"
    ),
    "unknown_function": (
        'rows with a call of a function that is not in their "tools": {lines}. The model learns to call unavailable '
        'functions; add the function to "tools"'
    ),
    "unprinted_name": (
        'rows with a "name" that the model\'s chat template does not print: {lines}. The model does not see it; write '
        "it into the content if it matters"
    ),
    "unprinted_content": (
        "rows with content and tool calls, of which the model's chat template prints only the calls: {lines}. The "
        "model does not see the content; move it to a separate message if it matters"
    ),
    "control_token": (
        "rows with a control token of the model in the text of a system, user or tool message: {lines}. It becomes "
        "that token, as at inference, and may end the turn; remove it if it is meant as text"
    ),
    **{
        f"{UNREAD}{name}": f"rows whose {name} in chat_template_kwargs, their own or the job's, the model's chat "
        "template does not read: {lines}. It has no effect; remove it, or choose a model whose template reads it"
        for name in ChatTemplateArguments.model_fields
    },
}
# About the request; without_effect has the text of the parameter
SAME_FILE = (
    "The validation file has the same content as the training file, so its loss cannot show overfitting; give a file "
    "of other rows"
)
EXPERTS_FROZEN = (
    "The experts of this mixture of experts stay frozen, which are most of its weights: the adapter changes the other "
    "layers. lora.experts adapts them, too"
)
NO_VALIDATION_FILE = (
    "There is no validation file, so there is no validation loss: overfitting stays unseen, and early_stopping and "
    "promote_best cannot be used; keep some rows out of the training file and give them as validation_file"
)


@dataclass
class LineCount:
    """The number of lines, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.first) < MAX_FIRST_LINES:
            self.first.append(line)

    def __str__(self) -> str:
        where = ", ".join(map(str, self.first)) + (", …" if self.count > len(self.first) else "")
        return f"{self.count:,} ({'line' if self.count == 1 else 'lines'} {where})"


@dataclass(frozen=True)
class DatasetWarning:
    """A warning about `count` rows of one file; `first_lines` has the first ten of them."""

    code: str
    message: str
    count: int
    first_lines: Sequence[int]


def request_warning(code: str, message: str) -> dict[str, Any]:
    """A warning about a request, in the form in which a job stores those about its files."""
    return {"code": code, "message": message, "file": None, "count": 1, "first_lines": []}


class RowIndex:
    """The distinct rows of one file, by digest.

    Rows that differ only in white space, the order of keys, null for an absent key or the spelling of a pair's keys
    are equal.
    """

    def __init__(self) -> None:
        self.lines: dict[
            int, int
        ] = {}  # 64-bit digest -> line; for a million rows the chance of a collision is 1 in 37 million

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= MAX_INDEXED_ROWS

    def add(self, digest: int, line: int) -> int | None:
        """The line of an earlier row with the same digest; None for a new row, which is added."""
        earlier = self.lines.get(digest)
        if earlier is None and not self.is_full:
            self.lines[digest] = line
        return earlier


def row_digest(example: Example) -> int:
    conversations = (example.messages, example.preferred, example.non_preferred)
    content = (
        [[_without_nulls(message) for message in messages] for messages in conversations],
        example.tools,
        example.prompt,
        example.completion,
        example.text,
        *([] if example.label is None else [example.label]),
        *([example.chat_template_kwargs.model_dump()] if example.chat_template_kwargs else []),
    )
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def warning_codes(example: Example, renderer: Renderer) -> Iterator[str]:
    """Yield the codes of the warnings about one row by itself."""
    renderer = renderer.with_arguments(example.chat_template_kwargs)
    outputs = [output for output in (example.preferred, example.non_preferred) if output]
    if _has_empty_answer(example):
        yield "empty_answer"
    if _calls_unknown_function(example):
        yield "unknown_function"
    conversations = [(*example.messages, *output) for output in outputs] or [example.messages]
    if any(_omits_names(each, example.tools, renderer) for each in conversations):
        yield "unprinted_name"
    if any(_omits_content(each, example.tools, renderer) for each in conversations):
        yield "unprinted_content"
    if any(_has_control_token(each, renderer) for each in conversations):
        yield "control_token"
    for name, value in example.chat_template_kwargs or ():
        if value is not None and not (example.messages and renderer.template and name in renderer.template.variables):
            yield f"{UNREAD}{name}"


def build_warnings(
    lines_by_code: Mapping[str, LineCount], method: MethodName, context_length: int, different_rows: int
) -> list[DatasetWarning]:
    """The warnings in the order of MESSAGES. Their texts begin in lower case, to follow the name of the file."""
    values = {"context_length": context_length, "nothing": METHODS[method].untrainable, "rows": different_rows}
    return [
        DatasetWarning(code, message.format(lines=lines, **values), lines.count, lines.first)
        for code, message in MESSAGES.items()
        if (lines := lines_by_code.get(code)) is not None and lines.count
    ]


def label_warnings(
    desirable: LineCount, undesirable: LineCount, weights: tuple[float, float]
) -> Iterator[DatasetWarning]:
    """Yield what is wrong with the share of each label; nothing for rows without labels."""
    if bool(desirable.count) != bool(undesirable.count):
        name, lines = ("desirable", desirable) if desirable.count else ("undesirable", undesirable)
        text = f"only {name} answers: {lines}. The model learns from the difference; add answers of the other label"
        yield DatasetWarning("one_label", text, lines.count, lines.first)
    elif desirable.count:
        even = weights[1] * undesirable.count / desirable.count  # the weight of desirable answers for 1:1
        if not MIN_LABEL_RATIO <= weights[0] / even <= MAX_LABEL_RATIO:
            lines = desirable if weights[0] < even else undesirable
            text = (
                f"{desirable.count:,} desirable and {undesirable.count:,} undesirable answers, which is "
                f"{weights[0] / even:.2g} to 1 with their weights; 1 to 1.33 is usual. Set desirable_weight to a value "
                f"from {even:.2g} to {4 / 3 * even:.2g}, or undesirable_weight accordingly"
            )
            yield DatasetWarning("unbalanced_labels", text, lines.count, lines.first)


# --- one row ----------------------------------------------------------------------------------------------------------


def _has_empty_answer(example: Example) -> bool:
    if example.text is not None:
        return not example.text.strip()
    if example.completion is not None:
        return not example.completion.strip()
    answers = (*example.preferred, *example.non_preferred) if example.is_pair else example.messages
    return any(
        message["role"] == "assistant" and message.get("weight") != 0 and _is_empty(message) for message in answers
    )


def _is_empty(message: Message) -> bool:
    keys = ("refusal", "tool_calls", "function_call", *REASONING_KEYS)
    return not content_text(message).strip() and not any(message.get(key) for key in keys)


def _calls_unknown_function(example: Example) -> bool:
    """Files that were checked by the first line rules may have tools that are not such objects."""
    functions = [tool.get("function") for tool in example.tools]
    known = {function.get("name") for function in functions if isinstance(function, dict)}
    for message in (*example.messages, *example.preferred, *example.non_preferred):
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        calls += [message["function_call"]] if message.get("function_call") else []
        if any(call["name"] not in known for call in calls):
            return True
    return False


def _omits_names(messages: Sequence[Message], tools: Sequence[Message], renderer: Renderer) -> bool:
    """The name of a `function` message does not count: it is required, and the call before it contains it."""
    roles = {message["role"] for message in messages if message.get("name") and message["role"] != "function"}
    normalized = renderer.normalized(messages)
    return any(
        not renderer.renders_differently(normalized, tools, renderer.normalized(_without_names(messages, role)), tools)
        for role in roles
    )


def _omits_content(messages: Sequence[Message], tools: Sequence[Message], renderer: Renderer) -> bool:
    """All such messages are checked at once, for speed: a template prints the content of all of them or of none."""
    turns_with_both = {
        turn
        for turn, message in enumerate(messages)
        if (message.get("tool_calls") or message.get("function_call")) and content_text(message).strip()
    }
    if not turns_with_both:
        return False
    normalized = renderer.normalized(messages)
    without_content = [
        message | {"content": ""} if turn in turns_with_both else message for turn, message in enumerate(normalized)
    ]
    return not renderer.renders_differently(normalized, tools, without_content, tools)


def _has_control_token(messages: Sequence[Message], renderer: Renderer) -> bool:
    """Answers do not count: datasets may contain reasoning and calls with control tokens."""
    pattern = renderer.special_pattern
    return pattern is not None and any(
        pattern.search(content_text(message)) for message in messages if message["role"] != "assistant"
    )


def _without_names(messages: Sequence[Message], role: str) -> list[Message]:
    return [
        {key: value for key, value in message.items() if key != "name"} if message["role"] == role else message
        for message in messages
    ]


def _without_nulls(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}
