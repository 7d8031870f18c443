"""The sampler in its own process, with a real adapter on a tiny base; and the command around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.commands.jobs import adapters
from app.cli.errors import UsageError
from app.cli.output.compare import AnswerComparison, compare, read_examples
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.storage import LocalStorage
from app.system.artifact_directory import write_manifest
from tests.commands.conftest import Tunery
from tests.commands.trained import make_trained_job
from tests.sentences import Reviewed
from tests.tiny import make_tiny_adapter


@pytest.mark.extended("another load of the bundled base")
@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        pytest.param(None, "in 16 bits", marks=pytest.mark.slow),
        ({"bits": 4, "type": "fp4", "double_quant": False}, "in 4 bits (fp4, as in the training)"),
    ],
    ids=["16 bits", "4 bits"],
)
def test_the_command_compares_on_the_base_as_it_was_in_training(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, quantization: dict[str, object] | None, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny matrices: a second thread only waits
    answers: list[AnswerComparison] = []
    monkeypatch.setattr(adapters, "compare", lambda *given: answers.extend(compare(*given)) or answers)
    base = tmp_path / "tiny"

    def write(directory: Path, step: int) -> Path:
        make_tiny_adapter(directory)
        lora = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
        write_manifest(directory, {"step": step, "quantization": quantization, "lora": lora})
        return directory

    with transaction(sessions) as session:
        job = make_trained_job(session, storage, project, tmp_path / "made", write)
    lines = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]}
        for text in ("red", "a much longer prompt: blue", "c")
    ]
    prompts = tmp_path / "heldout.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = tunery("adapters", "compare", job.id, "--base", base, "--prompts", prompts, "--limit", 2)
    assert done.exit_code == 0, done.err
    assert words in done.out
    assert [answer.prompt for answer in answers] == ["red", "a much longer prompt: blue"]
    assert all(answer.base != answer.tuned for answer in answers)


def test_the_command_refuses_a_base_that_the_adapter_was_not_trained_on(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path,
    reviewed: Reviewed,
) -> None:  # fmt: skip
    def write(directory: Path, step: int) -> Path:
        directory.mkdir(parents=True)
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
        write_manifest(directory, {"step": step, "base_model": {"name": "tiny", "manifest_sha256": "0" * 64}})
        return directory

    with transaction(sessions) as session:
        job = make_trained_job(session, storage, project, tmp_path / "made", write)
    prompts = tmp_path / "heldout.jsonl"
    prompts.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}\n', encoding="utf-8"
    )
    done = tunery("adapters", "compare", job.id, "--base", tmp_path / "tiny", "--prompts", prompts)
    assert done.exit_code == 2
    reviewed(done.err.replace(str(tmp_path), "HERE"))


@pytest.mark.parametrize(
    "text",
    ["", "no JSON\n", "[]\n", '{"prompt": "a"}\n', '{"messages": [{"role": "assistant", "content": "alone"}]}\n',
     '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n', '{"messages": [1, 2]}\n'],
)  # fmt: skip
def test_a_file_without_such_examples_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_examples(path)


def test_the_expected_answer_is_the_last_message_whatever_other_fields_the_line_has(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    path = tmp_path / "heldout.jsonl"
    path.write_text(json.dumps({"messages": messages, "reference_answer": 5}) + "\n")
    (example,) = read_examples(path)
    assert (example.messages, example.wanted) == (messages[:1], "x")
