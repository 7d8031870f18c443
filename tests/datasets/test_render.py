"""Rendering by properties: what is learned is what generation would produce, and nothing else."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.documents import NON_PREFERRED, PREFERRED, cut_at_end
from app.domain.datasets.examples import Example
from app.domain.datasets.render import Renderer
from app.system.tokenizer_files import load_renderer
from tests.datasets.rendered import trained_texts
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base

# Drops what an assistant said before the last question, as templates of reasoning models drop their thoughts.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}(forgotten){% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICKY = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
WITH_TOOLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00<|>"), min_size=1, max_size=20)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def renderer(base: Path) -> Renderer:
    return load_renderer(base)


def test_a_tokenizer_is_read_once_and_again_when_its_file_changes(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path)
    first = load_renderer(base)
    assert load_renderer(base).tokenizer is first.tokenizer
    file = base / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    assert load_renderer(base).tokenizer is not first.tokenizer


def with_template(base: Path, template: str) -> Renderer:
    known = load_renderer(base)
    return Renderer(known.tokenizer, template, known.special_tokens)


def chat(*turns: tuple[str, str], **extra: Any) -> Example:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **extra}]
    return Example(1, messages=tuple(messages))


def test_a_template_that_reads_the_time_gets_the_renderers_each_time(base: Path, reviewed: Reviewed) -> None:
    known, then = load_renderer(base), datetime(2026, 11, 26, 23, 59, 59)
    template = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + MARKED
    renderer = Renderer(known.tokenizer, template, known.special_tokens, now=then)
    reviewed(renderer.text([]))
    (document,) = with_template(base, template).documents(chat(("a", "b")))  # several renderings, which must agree
    assert document.labelled_count


@given(TURNS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_answer_and_its_end_is_learned_and_nothing_else(renderer: Renderer, turns: list[tuple[str, str]]) -> None:
    (document,) = renderer.documents(chat(*turns))
    assert list(trained_texts(renderer, document)) == [f"{answer}<|im_end|>" for _, answer in turns]


@given(TURNS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_tokens_before_an_answer_are_those_of_serving(renderer: Renderer, turns: list[tuple[str, str]]) -> None:
    example = chat(*turns)
    (document,) = renderer.documents(example)
    prompt = renderer.encode(renderer.text(list(example.messages[:-1]), prompt=True))
    assert document.tokens[: len(prompt)] == prompt
    assert document.labelled[len(prompt)]
    assert not document.labelled[len(prompt) - 1]


def test_a_turn_with_weight_zero_is_read_but_not_learned(renderer: Renderer) -> None:
    messages = (*chat(("a", "first")).messages, *chat(("b", "second")).messages)
    messages[1]["weight"] = 0
    (document,) = renderer.documents(Example(1, messages=messages))
    assert list(trained_texts(renderer, document)) == ["second<|im_end|>"]
    assert "first" in renderer.decode(document.tokens)


def test_an_example_of_weight_zero_only_has_no_label(renderer: Renderer) -> None:
    (document,) = renderer.documents(chat(("a", "b"), weight=0)) or [None]
    assert document is not None
    assert document.labelled_count == 0


def test_only_the_compared_answers_of_a_pair_are_learned(renderer: Renderer) -> None:
    asked = (*chat(("a", "first")).messages, {"role": "user", "content": "b"})
    answers = [({"role": "assistant", "content": text},) for text in ("good", "bad")]
    documents = renderer.documents(Example(1, messages=asked, preferred=answers[0], non_preferred=answers[1]))
    assert [document.pair_role for document in documents] == [PREFERRED, NON_PREFERRED]
    learned = [list(trained_texts(renderer, document)) for document in documents]
    assert learned == [["good<|im_end|>"], ["bad<|im_end|>"]]


def test_a_template_that_rewrites_earlier_turns_gives_one_document_for_each_answer(base: Path) -> None:
    renderer = with_template(base, FORGETFUL)
    documents = renderer.documents(chat(("a", "first"), ("b", "second")))
    assert [list(trained_texts(renderer, document)) for document in documents] == [
        ["first<|im_end|>"],
        ["second<|im_end|>"],
    ]
    assert "(forgotten)" in renderer.decode(documents[1].tokens)


def test_generation_marks_of_other_trainers_change_nothing(base: Path, renderer: Renderer) -> None:
    example = chat(("a", "first"), ("b", "second"))
    assert with_template(base, MARKED).documents(example) == renderer.documents(example)


def test_a_template_that_refuses_a_conversation_is_quoted(base: Path, reviewed: Reviewed) -> None:
    example = Example(1, messages=({"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}))
    with pytest.raises(TemplateRefused) as caught:
        with_template(base, PICKY).documents(example)
    reviewed(str(caught.value))


@pytest.mark.parametrize(
    "mistake", ["{{ 1 // 0 }}", "{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}", "{{ ''.join([1]) }}"]
)
def test_a_template_with_a_mistake_of_its_own_refuses_and_does_not_crash(base: Path, mistake: str) -> None:
    with pytest.raises(TemplateRefused, match="chat template refuses"):
        with_template(base, mistake).documents(chat(("a", "b")))


def test_a_tokenizer_without_a_template_says_what_to_use_instead(base: Path) -> None:
    known = load_renderer(base)
    with pytest.raises(TemplateRefused, match="use prompt/completion lines"):
        Renderer(known.tokenizer, None, known.special_tokens).documents(chat(("a", "b")))


def test_tools_reach_the_template_and_arguments_arrive_as_an_object(base: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Łódź"})}}
    example = Example(
        1,
        messages=({"role": "user", "content": "hm"}, {"role": "assistant", "content": None, "tool_calls": [call]}),
        tools=({"type": "function", "function": {"name": "weather"}},),
    )
    renderer = with_template(base, WITH_TOOLS)
    (document,) = renderer.documents(example)
    assert list(trained_texts(renderer, document)) == ["weather(Łódź)<|im_end|>"]
    assert '{"name": "weather"}' in renderer.decode(document.tokens)


def test_a_template_is_sandboxed(base: Path) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateRefused, match="unsafe"):
        with_template(base, escape).documents(chat(("a", "b")))


def test_a_completion_is_learned_with_its_end_and_its_prompt_is_not(renderer: Renderer) -> None:
    (document,) = renderer.documents(Example(1, prompt="2+2=", completion="4"))
    assert list(trained_texts(renderer, document)) == ["4<|im_end|>"]
    assert renderer.decode(document.tokens) == "2+2=4"


def test_the_first_token_is_never_a_target(renderer: Renderer) -> None:
    (document,) = renderer.documents(Example(1, prompt="", completion="abc"))
    assert document.labelled == [False, True, True, True]


@given(st.integers(1, 60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_long_document_is_cut_at_its_end(renderer: Renderer, context_length: int) -> None:
    (document,) = renderer.documents(chat(("question", "answer")))
    short = cut_at_end(document, context_length)
    assert short.tokens == document.tokens[:context_length]
    assert short.labelled == document.labelled[:context_length]


def test_the_newest_transformers_renders_and_tokenises_the_same(base: Path, renderer: Renderer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    example = chat(("Hällo", "wörld 🌍"), ("b", "c"))
    (document,) = renderer.documents(example)
    assert document.tokens == tokenizer.apply_chat_template(list(example.messages), return_dict=False)
