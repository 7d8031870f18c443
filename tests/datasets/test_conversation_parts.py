"""A long conversation becomes the same documents part by part as it does message by message, in less time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets import render
from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import Document
from app.domain.datasets.examples import Example
from app.domain.datasets.render import Renderer
from app.domain.jobs.spec import DataParameters
from app.system.tokenizer_files import load_renderer
from tests.datasets.families import (
    CHATML,
    FAMILIES,
    FORGETFUL,
    HERMES,
    REASONING,
    SMOLLM2,
    Family,
    make_tokenizer,
    write_family,
)
from tests.sentences import Reviewed

NUMBERED = (  # the text of a message says how many came before it
    "{% for m in messages %}{{ '<|im_start|>' + m.role + loop.index|string + '\\n' + m.content + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' + (messages|length + 1)|string + '\\n' }}"
    "{% endif %}"
)
MUTE = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ m.role + ':' + m.content + eos_token }}{% endif %}{% endfor %}"
)
MUTE += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
FIRST_CALL = HERMES.replace("for c in m.tool_calls or []", "for c in (m.tool_calls or [])[:1]")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
Message = dict[str, Any]


def renderer_of(directory: Path, template: str, eos: str = "<|im_end|>") -> Renderer:
    return load_renderer(write_family(directory, Family("it", template, eos, eos), make_tokenizer()))


def chat(turns: int, seed: int = 0, system: bool = False) -> list[Message]:
    dice = random.Random(seed)
    messages: list[Message] = [{"role": "system", "content": "be brief " * 200}] if system else []
    for number in range(turns):
        messages.append({"role": "user", "content": f"question {number} " + "x" * dice.randint(0, 40)})
        weight = {"weight": 0} if dice.random() < 0.2 else {}
        messages.append({"role": "assistant", "content": dice.choice(("", " a", "b\n", "yes ")) * 3, **weight})
    return messages


def agent(steps: int) -> list[Message]:
    """One question, then calls and results only."""
    messages: list[Message] = [{"role": "user", "content": "find it"}]
    for number in range(steps):
        call = {
            "id": f"c{number}",
            "type": "function",
            "function": {"name": "look", "arguments": f'{{"at": {number}}}'},
        }
        messages.append({"role": "assistant", "content": "", "tool_calls": [call], "weight": number % 2})
        messages.append({"role": "tool", "content": f"result {number}", "tool_call_id": f"c{number}"})
    return [*messages, {"role": "assistant", "content": "found"}]


def thinking_agent(steps: int) -> list[Message]:
    return [
        message | ({"reasoning_content": f"step {number}"} if message["role"] == "assistant" else {})
        for number, message in enumerate(agent(steps))
    ]


def both_ways(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch, messages: list[Message], tools: tuple[Message, ...] = ()
) -> tuple[list[Document], list[Document]]:
    example = Example(1, messages=tuple(messages), tools=tools)
    by_parts = renderer.documents(example)
    monkeypatch.setattr(render, "MAX_MESSAGES_IN_ONE_RENDERING", 1_000_000)
    return by_parts, renderer.documents(example)


class TestByParts:
    @pytest.mark.parametrize("family", FAMILIES, ids=str)
    @pytest.mark.parametrize("system", [False, True])
    def test_every_family_gives_the_same(
        self, family: Family, system: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if system and not family.takes_system:
            pytest.skip("its template refuses a system prompt")
        renderer = load_renderer(write_family(tmp_path, family, make_tokenizer()))
        by_parts, exact = both_ways(renderer, monkeypatch, chat(47, seed=3, system=system))
        assert by_parts == exact

    def test_calls_and_results_give_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        by_parts, exact = both_ways(renderer_of(tmp_path, HERMES), monkeypatch, agent(60), (TOOL,))
        assert by_parts == exact

    def test_reasoning_gives_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        messages = [{key: value for key, value in one.items() if key != "tool_calls"} for one in thinking_agent(60)]
        by_parts, exact = both_ways(renderer_of(tmp_path, REASONING), monkeypatch, messages)
        assert by_parts == exact
        (document,) = by_parts
        assert document.labelled_count > 31 * len("<think>step</think>")

    def test_reasoning_of_a_very_long_one_is_learned(self, tmp_path: Path) -> None:
        messages = [{key: value for key, value in one.items() if key != "tool_calls"} for one in thinking_agent(600)]
        (document,) = renderer_of(tmp_path, REASONING).documents(Example(1, messages=tuple(messages)))
        assert document.labelled_count

    def test_a_template_that_counts_messages_is_right(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        by_parts, exact = both_ways(renderer_of(tmp_path, NUMBERED), monkeypatch, chat(47))
        assert by_parts == exact
        assert sum(by_parts[0].labelled)

    @pytest.mark.parametrize(
        ("template", "messages", "tools"),
        [
            (CHATML, chat, ()),
            (SMOLLM2, chat, ()),
            (HERMES, chat, ()),
            (HERMES.replace("+ m.content }}", "+ (m.reasoning_content or '') + m.content }}"), thinking_agent, (TOOL,)),
        ],
        ids=["CHATML", "SMOLLM2", "HERMES", "checks of calls"],
    )
    def test_the_work_is_linear(
        self,
        template: str,
        messages: Callable[[int], list[Message]],
        tools: tuple[Any, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        renderer, rendered = renderer_of(tmp_path, template), 0
        text = renderer.template.text  # type: ignore[union-attr]

        def counted(messages: list[Message], *more: Any) -> str:
            nonlocal rendered
            rendered += len(messages)
            return text(messages, *more)

        monkeypatch.setattr(renderer.template, "text", counted)
        work = []
        for turns in (500, 1_000):
            rendered = 0
            renderer.documents(Example(1, messages=tuple(messages(turns)), tools=tools))
            work.append(rendered)
        assert work[1] < 2.2 * work[0]


def changed(messages: list[Message], place: int, **values: Any) -> list[Message]:
    return [*messages[:place], messages[place] | values, *messages[place + 1 :]]


CALL = {"id": "c", "type": "function", "function": {"name": "yes", "arguments": "{}"}}
CALLED = [
    {"role": "assistant", "content": "yes", "tool_calls": [CALL]},
    {"role": "tool", "content": "no", "tool_call_id": "c"},
]
# The template, its end of turn, and a conversation that it refuses.
REFUSED: dict[str, tuple[str, str, list[Message]]] = {
    "an end of turn": (CHATML, "<|im_end|>", changed(chat(100), 151, content="<|im_end|>", weight=1)),
    "a result": (MUTE, "</s>", [*chat(60)[:101], *CALLED, *chat(60)[101:]]),
    "a call that is not learned": (CHATML, "<|im_end|>", changed(chat(60), 101, tool_calls=[CALL], weight=0)),
    "a past that is rewritten": (FORGETFUL, "<|im_end|>", chat(501)),
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_a_loss_is_found_in_every_part_and_named_by_its_place(
        self, tmp_path: Path, name: str, reviewed: Reviewed
    ) -> None:
        template, eos, messages = REFUSED[name]
        with pytest.raises(TemplateRefused) as caught:
            renderer_of(tmp_path, template, eos).documents(Example(1, messages=tuple(messages)))
        reviewed(str(caught.value))

    @pytest.mark.parametrize("more", [{"weight": 1}, {"weight": 0}])
    def test_reasoning_that_is_not_printed_is_found_in_every_part(self, tmp_path: Path, more: Message) -> None:
        for turn in (1, 75, 159):
            messages = chat(80)
            messages[turn] |= {"reasoning_content": "hm"} | more
            refusal = f"message {turn + 1}: .* does not print reasoning_content, so it would be left out; write it into"
            with pytest.raises(TemplateRefused, match=refusal):
                renderer_of(tmp_path, CHATML).documents(Example(1, messages=tuple(messages)))

    def test_a_second_call_that_is_not_printed_is_found_in_every_part(self, tmp_path: Path, reviewed: Reviewed) -> None:
        """By the second line rules; a job of the first ones keeps what it was told is valid."""
        messages = agent(80)
        first = messages[91]["tool_calls"][0]
        messages[91] |= {"tool_calls": [first, first | {"id": "more"}], "weight": 1}
        renderer = renderer_of(tmp_path, FIRST_CALL)
        with pytest.raises(TemplateRefused) as caught:
            renderer.documents(Example(1, messages=tuple(messages), tools=(TOOL,)))
        reviewed(str(caught.value))
        assert renderer.documents(
            Example(1, messages=tuple(messages), tools=(TOOL,), parameters=DataParameters(line_rules=1))
        )
