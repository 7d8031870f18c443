"""Rendering by properties: what is learned is what generation would produce, and nothing else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets import encoding, render
from app.domain.datasets.chat_template import TemplateRefused
from app.domain.datasets.examples import Example
from app.domain.datasets.jsonl import Finding
from app.domain.datasets.render import Renderer
from app.system.tokenizer_files import load_renderer
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base, panic_at_many_a

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICKY = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


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


def test_generation_marks_of_other_trainers_change_nothing(base: Path, renderer: Renderer) -> None:
    example = chat(("a", "first"), ("b", "second"))
    assert with_template(base, MARKED).documents(example) == renderer.documents(example)


@pytest.mark.parametrize("longest", [render.BATCH_CHARACTERS, 100, 0])
def test_many_examples_in_one_call_have_the_documents_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    for module in (render, encoding):
        monkeypatch.setattr(module, "BATCH_CHARACTERS", longest)
    panic_at_many_a(make_tiny_base(tmp_path))
    renderer, refused = load_renderer(tmp_path), Example(2, messages=({"role": "assistant", "content": "<|im_end|>"},))
    items: list[Example | Finding] = [chat(*[("a" * n, "b" * n)] * (1 + n % 3)) for n in range(70)]
    items += [
        refused,
        Finding(3, "bad", "wrong_format"),
        Example(4, text="plain"),
        Example(5, prompt="a", completion="b"),
    ]
    items += [Example(6, text="a" * 300 + "!"), Example(7, text="")]
    found = list(renderer.documents_of_each(items))
    assert found[71] == items[71]
    alone = [renderer.documents_or_refusal(item) for item in items if isinstance(item, Example)]
    together = [each[1] for each in found if not isinstance(each, Finding)]
    assert [isinstance(each, TemplateRefused) for each in alone].count(True) == 2
    assert list(map(str, together)) == list(map(str, alone))


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


def test_a_template_is_sandboxed(base: Path) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateRefused, match="unsafe"):
        with_template(base, escape).documents(chat(("a", "b")))


def test_the_first_token_is_never_a_target(renderer: Renderer) -> None:
    (document,) = renderer.documents(Example(1, prompt="", completion="abc"))
    assert document.labelled == [False, True, True, True]


def test_the_newest_transformers_renders_and_tokenises_the_same(base: Path, renderer: Renderer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    example = chat(("Hällo", "wörld 🌍"), ("b", "c"))
    (document,) = renderer.documents(example)
    assert document.tokens == tokenizer.apply_chat_template(list(example.messages), return_dict=False)
