"""What a job takes and a person may not have meant: found row by row, counted, and put into words.

A refusal fails the job; a warning stands in the report of a file, in an event of the job and in the job's `warnings`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.domain.datasets.chat_template import Message, content_text, for_template
from app.domain.datasets.examples import Example
from app.domain.datasets.messages import REASONING_KEYS
from app.domain.datasets.render import Renderer
from app.domain.jobs.spec import Method

FIRST_LINES = 10
ROWS_REMEMBERED = 1_000_000  # different rows of a file, about 110 bytes each; later ones are compared with these

NOTHING: dict[Method, str] = {
    "supervised": "examples without a token to learn from",
    "dpo": "pairs without two different answers to learn from",
}
WORDS = {
    "cut": (
        "examples longer than context_length ({context_length:,} tokens), cut at their end: {lines}. Shorten them, or "
        "raise hyperparameters.context_length"
    ),
    "empty": "{nothing}, which contribute nothing: {lines}",
    "empty_answer": (
        "rows with an empty answer: {lines}. The model learns to answer nothing there; fill the answers in, or remove "
        "the rows"
    ),
    "duplicate_rows": (
        "rows that repeat an earlier row: {lines}. Each is trained again in every epoch; remove those that are not "
        "meant to weigh more"
    ),
    "overlap": (
        "rows of the validation file that are in the training file, too: {lines} of {rows:,} different rows. Their "
        "validation loss says how well they were memorised; name a file of other rows"
    ),
    "unknown_function": (
        'rows with a call of a function that their "tools" do not have: {lines}. The model learns to call what it is '
        'not offered; add the function to "tools"'
    ),
    "unprinted_name": (
        'rows with a "name" that the model\'s chat template does not print: {lines}. The model does not see it; write '
        "it into the content if it matters"
    ),
    "unprinted_content": (
        "rows with content beside tool calls, of which the model's chat template prints only the calls: {lines}. The "
        "model does not see the content; give it a message of its own if it matters"
    ),
    "control_token": (
        "rows with a control token of the model in the text of a system, user or tool message: {lines}. It becomes "
        "that token, as at serving, and may end the turn; remove it if it is meant as text"
    ),
}


@dataclass
class Lines:
    """How many lines, and which came first."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.first) < FIRST_LINES:
            self.first.append(line)

    def __str__(self) -> str:
        where = ", ".join(map(str, self.first)) + (", …" if self.count > len(self.first) else "")
        return f"{self.count:,} ({'line' if self.count == 1 else 'lines'} {where})"


@dataclass(frozen=True)
class DatasetWarning:
    """`count` rows of one file with the same peculiarity; `first_lines` has the first ten of them."""

    code: str
    message: str
    count: int
    first_lines: Sequence[int]


class SeenRows:
    """The rows of one file by what they mean: white space, the order of keys, null for what may be absent and the
    spelling of a pair make no other row."""

    def __init__(self) -> None:
        self.lines: dict[int, int] = {}  # digest of 64 bits -> line: two of a million rows share one by 1 in 37 million

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= ROWS_REMEMBERED

    def add(self, digest: int, line: int) -> int | None:
        """The line of an earlier row with the same digest; None for a new row, which is remembered."""
        earlier = self.lines.get(digest)
        if earlier is None and not self.is_full:
            self.lines[digest] = line
        return earlier


def digest_of(example: Example) -> int:
    conversations = (example.messages, example.preferred, example.non_preferred)
    meaning = (
        [[_without_nulls(message) for message in messages] for messages in conversations],
        example.tools, example.prompt, example.completion, example.text,
    )  # fmt: skip
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def codes_of(example: Example, renderer: Renderer) -> Iterator[str]:
    """What is peculiar about one row by itself."""
    outputs = [output for output in (example.preferred, example.non_preferred) if output]
    if _has_empty_answer(example):
        yield "empty_answer"
    if _calls_unknown_function(example):
        yield "unknown_function"
    conversations = [(*example.messages, *output) for output in outputs] or [example.messages]
    if any(_leaves_out_names(each, example.tools, renderer) for each in conversations):
        yield "unprinted_name"
    if any(_leaves_out_content(each, example.tools, renderer) for each in conversations):
        yield "unprinted_content"
    if any(_has_control_token(each, renderer) for each in conversations):
        yield "control_token"


def in_words(
    found: Mapping[str, Lines], method: Method, context_length: int, different_rows: int
) -> list[DatasetWarning]:
    """In the order of WORDS; the sentences begin in lower case, after the name of the file."""
    values = {"context_length": context_length, "nothing": NOTHING[method], "rows": different_rows}
    return [
        DatasetWarning(code, words.format(lines=lines, **values), lines.count, lines.first)
        for code, words in WORDS.items()
        if (lines := found.get(code)) is not None and lines.count
    ]


# --- one row ----------------------------------------------------------------------------------------------------------


def _has_empty_answer(example: Example) -> bool:
    if example.text is not None:
        return not example.text.strip()
    if example.completion is not None:
        return not example.completion.strip()
    answers = (*example.preferred, *example.non_preferred) if example.is_pair else example.messages
    return any(
        message["role"] == "assistant" and message.get("weight") != 0 and _says_nothing(message) for message in answers
    )


def _says_nothing(message: Message) -> bool:
    keys = ("refusal", "tool_calls", "function_call", *REASONING_KEYS)
    return not content_text(message).strip() and not any(message.get(key) for key in keys)


def _calls_unknown_function(example: Example) -> bool:
    """A tool is an object with the name of a function, but for files that were checked by the first line rules."""
    functions = [tool.get("function") for tool in example.tools]
    known = {function.get("name") for function in functions if isinstance(function, dict)}
    for message in (*example.messages, *example.preferred, *example.non_preferred):
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        calls += [message["function_call"]] if message.get("function_call") else []
        if any(call["name"] not in known for call in calls):
            return True
    return False


def _leaves_out_names(messages: Sequence[Message], tools: Sequence[Message], renderer: Renderer) -> bool:
    """Of a `function` message the name is no loss: it must be given, and the call before it has it."""
    named = {message["role"] for message in messages if message.get("name") and message["role"] != "function"}
    whole = for_template(messages)
    return any(not renderer.prints(whole, tools, for_template(_without_names(messages, role)), tools) for role in named)


def _leaves_out_content(messages: Sequence[Message], tools: Sequence[Message], renderer: Renderer) -> bool:
    """Asked of all such messages at once, for the sake of long conversations: a template prints all of them or none."""
    calling = {
        turn
        for turn, message in enumerate(messages)
        if (message.get("tool_calls") or message.get("function_call")) and content_text(message).strip()
    }
    if not calling:
        return False
    shaped = for_template(messages)
    silent = [message | {"content": ""} if turn in calling else message for turn, message in enumerate(shaped)]
    return not renderer.prints(shaped, tools, silent, tools)


def _has_control_token(messages: Sequence[Message], renderer: Renderer) -> bool:
    """In an answer it may be wanted: reasoning and calls are written by hand that way."""
    special = renderer.special
    return special is not None and any(
        special.search(content_text(message)) for message in messages if message["role"] != "assistant"
    )


def _without_names(messages: Sequence[Message], role: str) -> list[Message]:
    return [
        {key: value for key, value in message.items() if key != "name"} if message["role"] == role else message
        for message in messages
    ]


def _without_nulls(message: Message) -> Message:
    return {key: value for key, value in message.items() if value is not None}
