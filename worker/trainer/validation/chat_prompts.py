"""The conversations behind recorded prompts, for engines and gateways that take messages only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.examples import Example, read_examples
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.domain.jobs.spec import DataParameters

SENT_KEYS = frozenset({"role", "content", "weight"})  # a message with others is not sent, as engines differ in them


class ChatPrompt(NamedTuple):
    messages: list[dict[str, str]]
    answer: list[str]  # the texts of the tokens of the first expected answer


def examples_at(path: Path, lines: Collection[int], parameters: DataParameters) -> dict[int, Example]:
    """{line: its example}; the file is read up to the last of these lines."""
    found: dict[int, Example] = {}
    with path.open("rb") as file:
        for example in read_examples(file, path.stat().st_size, parameters):
            if not isinstance(example, Finding) and example.line in lines:
                found[example.line] = example
            if len(found) == len(lines):
                break
    return found


def chat_prompt(
    renderer: Renderer, example: Example, tokens: Sequence[int], positions: Sequence[int]
) -> ChatPrompt | None:
    """The messages from which the template makes the tokens before the first expected one; None if there are none."""
    conversation = [*example.messages, *example.preferred]
    for number, message in enumerate(conversation):
        before = conversation[:number]
        if message["role"] != "assistant" or example.tools or not all(map(_is_sent, before)):
            continue
        if _rendered(renderer, before) == list(tokens[: positions[0]]):
            messages = [{"role": str(each["role"]), "content": str(each["content"])} for each in before]
            decode = renderer.tokenizer.decode
            texts = [decode([tokens[each]], skip_special_tokens=False) for each in _first_run(positions)]
            return ChatPrompt(messages, texts)
    return None


def _is_sent(message: dict[str, object]) -> bool:
    return message.keys() <= SENT_KEYS and isinstance(message.get("content"), str)


def _rendered(renderer: Renderer, messages: Sequence[dict[str, object]]) -> list[int]:
    try:
        return renderer.encode(renderer.text(renderer.normalized(messages), prompt=True))
    except TemplateRefused:
        return []


def _first_run(positions: Sequence[int]) -> list[int]:
    """The positions of the first answer: those without a gap."""
    return [position for number, position in enumerate(positions) if position == positions[0] + number]
