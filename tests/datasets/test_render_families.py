"""Properties of what is learned, for every family of chat templates and for templates that strip or reorder turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import Document
from app.domain.datasets.examples import Example
from app.domain.datasets.render import Renderer
from app.domain.jobs.spec import DataParameters
from app.system.tokenizer_files import load_renderer
from tests.datasets.families import (
    CHATML,
    DEEPSEEK,
    DEEPSEEK_R1,
    FAMILIES,
    HERMES,
    MISTRAL,
    PHI_3,
    REASONING,
    THINKING,
    Family,
    make_sentencepiece_tokenizer,
    make_tokenizer,
    write_family,
)
from tests.sentences import Reviewed

ALPHABET = st.sampled_from("ab \n\té🌍.'{") | st.characters(exclude_categories=["Cs"], exclude_characters="\x00<|>[]")
TEXT = st.text(ALPHABET, max_size=8)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Łódź"}'}}
QUESTION = {"role": "user", "content": "hm"}

Message = dict[str, Any]


def pair(prompt: tuple[Message, ...], good: Message, bad: Message) -> Example:
    return Example(1, messages=prompt, preferred=(good,), non_preferred=(bad,), parameters=DataParameters(method="dpo"))


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def renderer(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    directory = write_family(tmp_path_factory.mktemp(family.name), family, make_tokenizer())
    return load_renderer(directory)


@pytest.fixture
def renderer_of(tmp_path: Path) -> Any:
    def make(template: str, eos: str = "<|im_end|>", **more: Any) -> Renderer:
        return load_renderer(write_family(tmp_path, Family("it", template, eos, eos, **more), make_tokenizer()))

    return make


def conversation(turns: list[tuple[str, str]], system: str | None) -> list[Message]:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def trained_texts(renderer: Renderer, document: Document) -> Iterator[str]:
    """The trained stretches of a document as text."""
    stretch: list[int] = []
    for token, is_labelled in zip([*document.tokens, 0], [*document.labelled, False], strict=True):
        if is_labelled:
            stretch.append(token)
        elif stretch:
            yield str(renderer.tokenizer.decode(stretch, skip_special_tokens=False))
            stretch = []


def learned_by(renderer: Renderer, *messages: Message, tools: tuple[Message, ...] = ()) -> list[str]:
    documents = renderer.documents(Example(1, messages=messages, tools=tools))
    return [text for document in documents for text in trained_texts(renderer, document)]


@given(turns=TURNS, system=st.none() | TEXT)
@example(turns=[("a", "\nb"), ("\n\n", "\n\n\n")], system=None)
@example(turns=[("a", ""), ("", " "), ("", "")], system="")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_what_is_learned_is_what_generation_should_produce(
    family: Family, renderer: Renderer, turns: list[tuple[str, str]], system: str | None
) -> None:
    """Each answer from where the generation prompt ends to the end-of-turn token, and nothing else."""
    messages = conversation(turns, system if family.takes_system else None)
    documents = renderer.documents(Example(1, messages=tuple(messages)))
    learned = [text for document in documents for text in trained_texts(renderer, document)]
    assert learned == [family.answer(answer) + family.end for _, answer in turns]
    _has_as_many_documents_as_the_template_has_pasts(family, documents, turns, system)
    _begins_with_the_prompt_at_serving(renderer, documents, messages)


def _has_as_many_documents_as_the_template_has_pasts(
    family: Family, documents: list[Document], turns: list[tuple[str, str]], system: str | None
) -> None:
    has_system = system is not None and family.takes_system
    keeps = family.keeps_its_past and (not has_system or family.keeps_its_past_with_system)
    forgets = not keeps and len(turns) > 1
    assert len(documents) == (len(turns) if forgets else 1)


def _begins_with_the_prompt_at_serving(renderer: Renderer, documents: list[Document], messages: list[Message]) -> None:
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for document, turn in zip(documents, answers, strict=False):
        prompt = renderer.encode(renderer.text(messages[:turn], prompt=True))
        assert document.tokens[: len(prompt)] == prompt
        assert document.labelled.index(True) == len(prompt)


@given(turns=TURNS, learns=st.lists(st.booleans(), min_size=3, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_turns_of_weight_zero_are_read_and_not_learned(
    family: Family, renderer: Renderer, turns: list[tuple[str, str]], learns: list[bool]
) -> None:
    messages = conversation(turns, None)
    for message, weight in zip(messages[1::2], learns, strict=False):
        message["weight"] = int(weight)
    expected = [family.answer(a) + family.end for (_, a), weight in zip(turns, learns, strict=False) if weight]
    assert learned_by(renderer, *messages) == expected


@given(turns=TURNS, label=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
def test_only_the_last_answer_of_a_labelled_conversation_is_learned(
    family: Family, renderer: Renderer, turns: list[tuple[str, str]], label: bool
) -> None:
    example = Example(
        1, messages=tuple(conversation(turns, None)), label=label, parameters=DataParameters(method="kto")
    )
    (document,) = renderer.documents(example)
    assert document.role == (1 if label else -1)
    assert list(trained_texts(renderer, document)) == [family.answer(turns[-1][1]) + family.end]


@given(turns=TURNS, answers=st.tuples(TEXT, TEXT))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
def test_the_last_answers_of_a_pair_are_learned_and_no_earlier_one(
    family: Family, renderer: Renderer, turns: list[tuple[str, str]], answers: tuple[str, str]
) -> None:
    prompt = tuple(conversation(turns, None)[:-1])
    good, bad = ({"role": "assistant", "content": answer} for answer in answers)
    documents = renderer.documents(pair(prompt, good, bad))
    assert [document.role for document in documents] == [1, -1]
    for document, answer in zip(documents, answers, strict=True):
        assert list(trained_texts(renderer, document)) == [family.answer(answer) + family.end]


class TestTools:
    def test_a_call_is_learned_and_its_result_is_not(self, renderer_of: Any) -> None:
        messages = (
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "cold"},
            {"role": "assistant", "content": "It is cold."},
        )
        printed = '<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call><|im_end|>'
        assert learned_by(renderer_of(HERMES), *messages, tools=(TOOL,)) == [printed, "It is cold.<|im_end|>"]

    def test_tools_that_stand_in_the_last_question_give_one_document_a_turn(self, renderer_of: Any) -> None:
        messages = (QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}, QUESTION,
                    {"role": "assistant", "content": "ah"})  # fmt: skip
        renderer = renderer_of(MISTRAL, "</s>", bos="<s>")
        documents = renderer.documents(Example(1, messages=messages, tools=(TOOL,)))
        call = json.dumps([CALL["function"] | {"arguments": {"city": "Łódź"}}], ensure_ascii=False)
        assert [list(trained_texts(renderer, document)) for document in documents] == [
            [f"[TOOL_CALLS] {call}</s>"],
            [" ah</s>"],
        ]
        assert all("[AVAILABLE_TOOLS]" in renderer.decode(document.tokens) for document in documents)

    @pytest.mark.parametrize("template", [HERMES, MISTRAL])
    def test_the_older_function_calls_are_tool_calls(self, renderer_of: Any, template: str) -> None:
        renderer = renderer_of(template, "</s>" if template == MISTRAL else "<|im_end|>", bos="<s>")
        new = (
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "cold"},
            {"role": "assistant", "content": "It is cold."},
        )
        old = (
            QUESTION,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "weather", "content": "cold"},
            {"role": "assistant", "content": "It is cold."},
        )
        renderings = [renderer.documents(Example(1, messages=messages, tools=(TOOL,))) for messages in (new, old)]
        assert renderings[0] == renderings[1]

    def test_tools_that_a_template_insists_on_are_printed(self, renderer_of: Any) -> None:
        insisting = HERMES + "{% if not tools %}{{ raise_exception('give tools') }}{% endif %}"
        answer = {"role": "assistant", "content": "no idea"}
        assert learned_by(renderer_of(insisting), QUESTION, answer, tools=(TOOL,)) == ["no idea<|im_end|>"]

    def test_arguments_that_are_no_object_are_printed_as_they_are(self, renderer_of: Any) -> None:
        call = {**CALL, "function": {"name": "weather", "arguments": "5"}}
        (text,) = learned_by(renderer_of(HERMES), QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]})
        assert json.loads(text.split("\n")[1]) == {"name": "weather", "arguments": "5"}


class TestEnds:
    def test_every_stop_of_the_models_files_ends_generation(self, renderer_of: Any) -> None:
        renderer = renderer_of(PHI_3, "<|endoftext|>", stops=("<|end|>", "<|endoftext|>"))
        assert renderer.stops == ("<|endoftext|>", "<|end|>")
        assert renderer.stop_ids == [renderer.tokenizer.token_to_id(stop) for stop in renderer.stops]

    def test_config_json_is_read_where_there_is_no_generation_config(self, tmp_path: Path) -> None:
        tokenizer = make_tokenizer()
        directory = write_family(tmp_path, Family("it", CHATML, "<|endoftext|>", "<|im_end|>"), tokenizer)
        (directory / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id("<|im_end|>")}))
        assert load_renderer(directory).stops == ("<|endoftext|>", "<|im_end|>")

    def test_a_thought_is_learned_where_it_is_printed(self, tmp_path: Path) -> None:
        qwen = next(family for family in FAMILIES if family.name == "qwen-3")
        renderer = load_renderer(write_family(tmp_path, qwen, make_tokenizer()))
        turn = {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nYes."}
        whole = "<think>\nhmm\n</think>\n\nYes.<|im_end|>"
        assert learned_by(renderer, QUESTION, turn, QUESTION, turn) == [whole, whole]


def test_a_tokenizer_that_begins_each_text_with_a_space_is_not_given_parts(tmp_path: Path) -> None:
    llama = next(family for family in FAMILIES if family.name == "llama-2")
    tokenizer = make_sentencepiece_tokenizer()
    renderer = load_renderer(write_family(tmp_path, llama, tokenizer))
    messages = conversation([("the question", "the answer"), ("a", "b")], None)
    (document,) = renderer.documents(Example(1, messages=tuple(messages)))
    whole = renderer.text(messages)
    assert document.tokens == tokenizer.encode(whole, add_special_tokens=False).ids
    learned = [t for t, labelled in zip(document.tokens, document.labelled, strict=True) if labelled]
    assert tokenizer.decode(learned, skip_special_tokens=False).split() == ["the", "answer", "</s>", "b", "</s>"]


class TestWithoutATemplate:
    def renderer(self, directory: Path, bos: str | None = None) -> Renderer:
        return load_renderer(
            write_family(directory, Family("it", CHATML, "<|im_end|>", "<|im_end|>", bos=bos), make_tokenizer(bos))
        )

    @pytest.mark.parametrize("bos", [None, "<s>"])
    def test_a_completion_begins_as_the_tokenizer_begins_a_text(self, tmp_path: Path, bos: str | None) -> None:
        renderer = self.renderer(tmp_path, bos)
        (document,) = renderer.documents(Example(1, prompt="a\n", completion="\nb"))
        begin = [] if bos is None else [renderer.tokenizer.token_to_id(bos)]
        assert renderer.bos_tokens == begin
        assert document.tokens[: len(begin) + 2] == [*begin, *renderer.encode("a\n")]
        assert list(trained_texts(renderer, document)) == ["\nb<|im_end|>"]
        assert document.tokens[: len(begin) + 2] == renderer.encode_plain("a\n")

    def test_a_conversation_gets_no_second_beginning(self, tmp_path: Path) -> None:
        renderer = self.renderer(tmp_path, "<s>")
        (document,) = renderer.documents(Example(1, messages=(QUESTION, {"role": "assistant", "content": "ah"})))
        assert document.tokens[0] == renderer.tokenizer.token_to_id("<|im_start|>")

    @given(text=st.text(ALPHABET, max_size=30))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
    def test_a_plain_text_is_learned_but_its_first(self, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
        for bos in (None, "<s>"):
            renderer = self.renderer(tmp_path_factory.getbasetemp() / f"plain-{bos is None}", bos)
            (document,) = renderer.documents(Example(1, text=text))
            assert document.tokens == [*renderer.bos_tokens, *renderer.encode(text + "<|im_end|>")]
            assert document.labelled == [False] + [True] * (len(document) - 1)
            assert document.is_text


def thought(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}<|im_end|>"


class TestReasoning:
    """`reasoning_content` or `thinking` beside the content of an answer."""

    @pytest.mark.parametrize(("template", "key"), [(REASONING, "reasoning_content"), (THINKING, "thinking")])
    def test_reasoning_is_learned_where_the_template_prints_it(self, renderer_of: Any, template: str, key: str) -> None:
        answer = {"role": "assistant", "content": "no", key: "\nWhy?\n"}
        assert learned_by(renderer_of(template), QUESTION, answer) == [thought("Why?", "no")]

    def test_reasoning_of_earlier_turns_is_learned_when_they_are_the_newest(self, renderer_of: Any) -> None:
        turns = [QUESTION, {"role": "assistant", "content": "a", "reasoning_content": "x"}] * 2
        assert learned_by(renderer_of(REASONING), *turns) == [thought("x", "a")] * 2

    @pytest.mark.parametrize(
        ("template", "given"), [(THINKING, "reasoning_content"), (REASONING, "thinking")], ids=["thinking", "reasoning"]
    )
    @pytest.mark.parametrize("unused", [{}, {"reasoning_content": "", "thinking": None}], ids=["absent", "empty"])
    def test_reasoning_is_rendered_in_the_place_that_the_template_has(
        self, renderer_of: Any, template: str, given: str, unused: Message
    ) -> None:
        answer = {"role": "assistant", "content": "a"} | unused | {given: "x"}
        assert learned_by(renderer_of(template), QUESTION, answer) == [thought("x", "a")]

    @pytest.mark.parametrize("nothing", [None, "", " \n"])
    def test_empty_reasoning_is_no_loss(self, renderer_of: Any, nothing: str | None) -> None:
        answer = {"role": "assistant", "content": "no", "reasoning_content": nothing}
        assert learned_by(renderer_of(CHATML), QUESTION, answer) == ["no<|im_end|>"]


CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
NAMES_ITS_CALL = {"role": "assistant", "content": "I ask weather.", "tool_calls": [CALL]}
TWO_CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL | {"id": "bcdefghij"}]}
COLD, NO = ({"role": "assistant", "content": content} for content in ("It is cold.", "no"))
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "cold"}
REASONED = [NO | {key: "no"} | more for key in ("reasoning_content", "thinking") for more in ({}, {"weight": 0})]
FIRST_CALL = HERMES.replace("in m.tool_calls or [] %}", "in (m.tool_calls or [])[:1] %}")
# The template that refuses, the example, and a template that prints what the other one leaves out.
REFUSED: dict[str, tuple[str, Example, str | None]] = {
    "calls": (CHATML, Example(1, messages=(QUESTION, CALLS)), HERMES),
    "calls that are read": (CHATML, Example(1, messages=(QUESTION, CALLS | {"weight": 0}, QUESTION, COLD)), HERMES),
    "calls before a pair": (
        CHATML, pair((QUESTION, CALLS, QUESTION), COLD, COLD), HERMES,
    ),
    "a call whose name is in the content": (CHATML, Example(1, messages=(QUESTION, NAMES_ITS_CALL)), HERMES),
    "the second call": (FIRST_CALL, Example(1, messages=(QUESTION, TWO_CALLS)), HERMES),
    "tools": (CHATML, Example(1, messages=(QUESTION, NO), tools=(TOOL,)), HERMES),
    "results": (DEEPSEEK, Example(1, messages=(QUESTION, NO, RESULT, COLD)), HERMES),
    "reasoning of a pair": (
        CHATML, pair((QUESTION,), NO, NO | {"thinking": "hm"}), THINKING,
    ),
    **{
        f"reasoning {number}": (CHATML, Example(1, messages=(QUESTION, each, QUESTION, NO)), None)
        for number, each in enumerate(REASONED)
    },
    "two kinds of reasoning": (
        THINKING, Example(1, messages=(QUESTION, NO | {"reasoning_content": "x", "thinking": "y"})), None,
    ),
    "reasoning that ends the turn": (
        REASONING, Example(1, messages=(QUESTION, NO | {"reasoning_content": "a<|im_end|>"})), None,
    ),
    "an answer that ends the turn": (PHI_3, Example(1, messages=(QUESTION, NO | {"content": "a<|end|>b"})), None),
    "a prompt that begins a thought": (DEEPSEEK_R1, Example(1, messages=(QUESTION, NO)), None),
}  # fmt: skip
ENDS = {DEEPSEEK: "<｜end▁of▁sentence｜>", DEEPSEEK_R1: "<|im_end|>", PHI_3: "<|endoftext|>"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_or_end_the_turn_is_refused(renderer_of: Any, name: str, reviewed: Reviewed) -> None:
    template, example, printing = REFUSED[name]
    stops = {"stops": ("<|endoftext|>", "<|end|>")} if template == PHI_3 else {}
    with pytest.raises(TemplateRefused) as caught:
        renderer_of(template, ENDS.get(template, "<|im_end|>"), **stops).documents(example)
    reviewed(str(caught.value))
    if printing is not None:
        assert renderer_of(printing).documents(example)


def test_an_example_that_an_earlier_job_accepted_is_rendered(renderer_of: Any) -> None:
    """It was validated before a call whose name is in the content was seen as not printed."""
    earlier = Example(1, messages=(QUESTION, NAMES_ITS_CALL), parameters=DataParameters(line_rules=1))
    assert renderer_of(CHATML).documents(earlier)
