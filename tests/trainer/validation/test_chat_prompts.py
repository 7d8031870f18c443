"""The messages that are recorded with a prompt: a chat API makes the recorded tokens of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets.examples import Example
from app.domain.datasets.render import Renderer
from app.domain.deliveries.served_check import ReferencePrompt
from app.domain.jobs.spec import DataParameters
from app.system.tokenizer_files import load_renderer
from worker.trainer.validation.served_reference import examples_at, with_messages

QUESTION = {"role": "user", "content": "where is my parcel"}
ANSWER = {"role": "assistant", "content": "on its way"}


def chosen(tiny: Path, **fields: Any) -> tuple[Renderer, Example, ReferencePrompt]:
    """(renderer, an example, its tokens with the positions of the expected ones)."""
    renderer, example = load_renderer(tiny), Example(1, **fields)
    document = renderer.documents(example)[0]
    positions = [position for position, label in enumerate(document.labelled) if label]
    prompt = ReferencePrompt(tokens=document.tokens, positions=positions, base=[], adapter=[], top=[])
    return renderer, example, prompt


@pytest.mark.parametrize("before", [(), ({"role": "system", "content": "be short"},)])
def test_the_messages_before_the_first_expected_answer_are_recorded(
    tiny: Path, before: tuple[dict[str, str], ...]
) -> None:
    renderer, example, prompt = chosen(tiny, messages=(*before, QUESTION, ANSWER, QUESTION, ANSWER))
    found = with_messages(renderer, example, prompt)
    assert found.messages == [*before, QUESTION]
    assert renderer.encode(renderer.text(found.messages, prompt=True)) == prompt.tokens[: prompt.positions[0]]
    assert "".join(found.answer).startswith("on its way")
    assert len(found.answer) < len(prompt.positions)  # not those of the second answer


def test_an_answer_that_is_not_trained_is_a_part_of_the_messages(tiny: Path) -> None:
    messages = (QUESTION, ANSWER | {"weight": 0}, QUESTION, ANSWER)
    found = with_messages(*chosen(tiny, messages=messages))
    assert found.messages == [QUESTION, ANSWER, QUESTION]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "where", "completion": " there"},
        {"text": "where is my parcel"},
        {"messages": (QUESTION | {"name": "me"}, ANSWER)},
    ],
    ids=["completion", "text", "names"],
)
def test_what_a_chat_api_might_render_differently_is_not_recorded(tiny: Path, fields: dict[str, Any]) -> None:
    assert with_messages(*chosen(tiny, **fields)).messages is None


def test_the_examples_of_some_lines_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": [QUESTION, {"role": "assistant", "content": str(n)}]}) for n in range(1, 5)]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = examples_at(path, {2, 3}, DataParameters())
    assert {line: example.messages[1]["content"] for line, example in found.items()} == {2: "2", 3: "3"}
