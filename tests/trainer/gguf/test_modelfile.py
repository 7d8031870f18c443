"""The Modelfile's template is checked against the tokenizer's own; unusual templates are left to Ollama."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.system.limited_rendering import limited_renderer
from tests.datasets.families import GPT_OSS
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base
from worker.trainer.gguf.export import find_turns, write_modelfile

DEFAULT_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUMBERED = "{% for message in messages %}{{ loop.index }}{{ message['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
)


def modelfile(directory: Path, template: str | None = None, stop_ids: int | list[int] = 2) -> str:
    base = make_tiny_base(directory / "base", eos_token_id=stop_ids)
    if template is not None:
        (base / "chat_template.jinja").write_text(template)
    write_modelfile(directory, base, "model-Q8_0.gguf")
    return (directory / "Modelfile").read_text()


def test_turns_are_written_in_gos_syntax(tmp_path: Path, reviewed: Reviewed) -> None:
    reviewed(modelfile(tmp_path))


def test_a_default_system_message_precedes_a_conversation_without_one(tmp_path: Path, reviewed: Reviewed) -> None:
    text = modelfile(tmp_path, DEFAULT_SYSTEM)
    reviewed(text)
    assert "<|endoftext|>" not in text  # Ollama adds the beginning-of-sequence token itself


@pytest.mark.parametrize("template", [NUMBERED, NO_SYSTEM], ids=["other for each message", "without system messages"])
def test_a_template_that_is_no_sequence_of_turns_is_left_out(tmp_path: Path, template: str) -> None:
    assert "TEMPLATE " not in modelfile(tmp_path, template)


def test_the_template_has_the_arguments_of_the_training(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(GPT_OSS)
    write_modelfile(tmp_path, base, "model.gguf", ChatTemplateArguments(reasoning_effort="low"))
    assert "Reasoning: low" in (tmp_path / "Modelfile").read_text()


def test_every_end_of_an_answer_is_a_stop_token(tmp_path: Path) -> None:
    stops = [line for line in modelfile(tmp_path, stop_ids=[2, 0]).splitlines() if line.startswith("PARAMETER")]
    assert stops == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"']


def test_without_a_chat_template_there_is_no_template(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    write_modelfile(tmp_path, base, "model.gguf")
    assert [line.split()[0] for line in (tmp_path / "Modelfile").read_text().splitlines()] == ["FROM", "PARAMETER"]


def test_a_template_with_the_delimiter_of_the_modelfile_is_left_out(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    quoted = json.dumps('"""')[1:-1]
    (base / "chat_template.jinja").write_text(
        f"{{% for message in messages %}}{{{{ '{quoted}' + message['content'] }}}}{{% endfor %}}"
    )
    assert find_turns(limited_renderer(base)) is None
