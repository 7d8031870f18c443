"""The program of trial answers, in this process: adapters that change by question, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.answers.trial import MAX_NEW_TOKENS, AdapterOfAnswer, AnswerSpec, TrialQuestion, TrialRecord
from app.domain.jobs.spec import BaseSpec, LoraSpec
from app.system.artifact_directory import MANIFEST, sha256_file
from app.system.model_files import hash_directory
from tests.worker.evaluations.plain_answers import plain_answers
from tests.worker.exports.test_exporter import write_real_adapter
from worker.trainer.answers import trial
from worker.trainer.answers.trial import Questions, TrialProgram

SAY = [{"role": "user", "content": "say 3"}]
CONTEXT_LENGTH = 400
LORA = LoraSpec.model_validate({"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]})


@pytest.fixture
def program(tiny: Path) -> TrialProgram:
    base = BaseSpec(name="tiny", directory=tiny, manifest_sha256=hash_directory(tiny)[1])
    spec = AnswerSpec(
        base=base, quantization=None, dtype_is_free=True, context_length=CONTEXT_LENGTH, device="cpu", threads=1
    )
    questions = Questions.__new__(Questions)  # without the thread that reads standard input
    questions._stopped = set()
    return TrialProgram(spec, questions)


def question(**changes: Any) -> TrialQuestion:
    given = {
        "id": "q", "project_id": "p", "model": "m", "messages": SAY, "prompt": None, "max_new_tokens": 6,
        "temperature": 0, "top_p": 1, "seed": None, "stop": [],
    }  # fmt: skip
    return TrialQuestion.model_validate(given | changes)


def adapter_of(directory: Path) -> AdapterOfAnswer:
    return AdapterOfAnswer(directory=directory, manifest_sha256=sha256_file(directory / MANIFEST), lora=LORA)


@pytest.mark.parametrize("max_adapters", [4, 1], ids=["both in memory", "one in memory"])
def test_base_and_two_adapters_take_turns_on_one_loaded_base(
    program: TrialProgram,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    max_adapters: int,
) -> None:
    monkeypatch.setattr(trial, "MAX_ADAPTERS", max_adapters)
    directories = [write_real_adapter(tiny)(tmp_path / f"adapter-{seed}", seed) for seed in (1, 2)]
    expected = [plain_answers(tiny, directory, [SAY], 6)[0] for directory in directories]
    (of_base, of_first), (_, of_second) = expected
    first, second = map(adapter_of, directories)
    said = []
    for adapter in (None, first, second, first, None, second):
        program.answer(question(), adapter)
        records = map(TrialRecord.model_validate_json, capsys.readouterr().out.splitlines())
        said.append("".join(record.text for record in records).strip())
    assert said == [of_base, of_first, of_second, of_first, of_base, of_second]
    assert len({of_base, of_first, of_second}) == 3
    assert len(program._adapters) == min(2, max_adapters)


def test_an_answer_has_256_tokens_at_most(program: TrialProgram) -> None:
    end = program.answer(question(max_new_tokens=MAX_NEW_TOKENS), None)
    assert (end.completion_tokens, end.finish_reason) == (256, "length")


def test_the_context_ends_an_answer(program: TrialProgram) -> None:
    end = program.answer(question(messages=None, prompt="a" * (CONTEXT_LENGTH - 3)), None)
    assert (end.prompt_tokens + end.completion_tokens, end.finish_reason) == (CONTEXT_LENGTH, "length")


def test_the_time_limit_ends_an_answer(program: TrialProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_SECONDS", 0.0)
    end = program.answer(question(n=2, max_new_tokens=MAX_NEW_TOKENS), None)
    assert (end.type, end.completion_tokens, end.finish_reason) == ("end", 2, "length")  # one token for each choice


def test_a_prompt_without_tokens_is_refused(program: TrialProgram) -> None:
    program._renderer.bos_tokens = []
    refused = program.answer(question(messages=None, prompt=""), None)
    assert (refused.reason, refused.message.partition(":")[0]) == ("invalid_value", "prompt")


def test_the_message_of_a_long_text_names_the_prompt(program: TrialProgram) -> None:
    refused = program.answer(question(messages=None, prompt="a" * CONTEXT_LENGTH), None)
    assert refused.reason == "context_length_exceeded"
    assert "your prompt has 400 tokens" in refused.message
