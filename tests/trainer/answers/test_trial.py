"""The program of trial answers, in this process: adapters that change by question, and its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.answers.trial import (
    MAX_NEW_TOKENS,
    AdapterOfAnswer,
    AnswerSpec,
    TokenLogprob,
    TrialQuestion,
    TrialRecord,
)
from app.domain.jobs.spec import BaseSpec, LoraSpec, QuantizationSpec
from app.system.artifact_directory import MANIFEST, sha256_file
from app.system.model_files import hash_directory
from tests.tiny import make_tiny_base, panic_at_many_a
from tests.trainer.helpers import CPU_KERNELS
from tests.worker.evaluations.plain_answers import plain_answers
from tests.worker.exports.test_exporter import write_real_adapter
from worker.trainer.answers import trial
from worker.trainer.answers.evaluation import cache_weights_if_they_fit
from worker.trainer.answers.response_format import PenaltiesAndBiases
from worker.trainer.answers.trial import Questions, TrialProgram
from worker.trainer.kernels.cpu.memory import CpuMemory, DeviceMemory
from worker.trainer.model.base_model import load_base

SAY = [{"role": "user", "content": "say 3"}]
CONTEXT_LENGTH = 400
LABEL = {
    "type": "object", "properties": {"label": {"enum": ["refund", "card"]}, "is_open": {"type": "boolean"}},
    "required": ["label", "is_open"], "additionalProperties": False,
}  # fmt: skip
LORA = LoraSpec.model_validate({"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]})


@pytest.fixture
def program(tiny: Path) -> TrialProgram:
    return make_program(tiny)


def make_program(directory: Path) -> TrialProgram:
    base = BaseSpec(name="tiny", directory=directory, manifest_sha256=hash_directory(directory)[1])
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


@pytest.mark.parametrize(("dtype", "fits"), [(torch.bfloat16, True), (torch.float32, False)])
def test_weights_are_cached_if_they_take_half_of_the_free_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, fits: bool
) -> None:
    base = load_base("tiny", tiny, QuantizationSpec(), dtype, CPU_KERNELS)
    weights = sum(layer.base.in_features * layer.base.out_features for layer in base.layers.values())
    monkeypatch.setattr(CpuMemory, "measure", lambda _: DeviceMemory(capacity_bytes=2 * 2 * weights, used_bytes=0))
    cache_weights_if_they_fit(base)
    assert {layer.base.cached is not None for layer in base.layers.values()} == {fits}


@pytest.mark.parametrize("max_adapters", [4, 1], ids=["both in memory", "one in memory"])
def test_base_and_two_adapters_take_turns_on_one_loaded_base(
    program: TrialProgram, tiny: Path, tmp_path: Path, max_adapters: int,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
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


@pytest.mark.parametrize("param", ["prompt", "messages"])
def test_a_text_at_which_the_tokenizer_fails_is_named(tmp_path: Path, param: str) -> None:
    directory = make_tiny_base(tmp_path / "base")
    panic_at_many_a(directory)
    text = "a" * 300 + "!"
    asked = (
        {"messages": None, "prompt": text} if param == "prompt" else {"messages": [{"role": "user", "content": text}]}
    )
    refused = make_program(directory).answer(question(**asked), None)
    assert (refused.type, refused.reason) == ("error", "invalid_value")
    assert refused.message.startswith(f"{param}: ")


def test_a_template_without_an_end_is_refused(tmp_path: Path) -> None:
    directory = make_tiny_base(tmp_path / "base")
    (directory / "chat_template.jinja").write_text("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3)
    refused = make_program(directory).answer(question(), None)
    assert (refused.type, refused.reason, refused.message[:10]) == ("error", "invalid_value", "messages: ")


def test_the_message_of_a_long_text_names_the_prompt(program: TrialProgram) -> None:
    refused = program.answer(question(messages=None, prompt="a" * CONTEXT_LENGTH), None)
    assert refused.reason == "context_length_exceeded"
    assert "400 tokens" in refused.message


class TestResponseFormat:
    @pytest.mark.parametrize("temperature", [0, 2])
    def test_each_choice_obeys_the_schema(
        self, program: TrialProgram, capsys: pytest.CaptureFixture[str], temperature: float
    ) -> None:
        sampling = {"temperature": temperature, "seed": 3, "top_p": 0.5, "frequency_penalty": 2}
        asked = question(json_schema=LABEL, max_new_tokens=256, n=2, **sampling)
        end = program.answer(asked, None)
        records = [TrialRecord.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
        texts = ["".join(each.text for each in records if each.choice == choice) for choice in (0, 1)]
        assert [json.loads(text)["label"] in ("refund", "card") for text in texts] == [True, True]
        assert end.finish_reason == "stop"

    def test_a_schema_that_cannot_be_kept_is_refused(self, program: TrialProgram) -> None:
        refused = program.answer(question(json_schema={"not": {}}), None)
        assert (refused.reason, refused.param) == ("invalid_value", "response_format")


class TestPenaltiesAndBiases:
    """The scores of OpenAI's formula: score - count * frequency - (count > 0) * presence + bias."""

    def test_scores_change_by_the_formula(self) -> None:
        asked = question(frequency_penalty=0.5, presence_penalty=1.5, logit_bias={"0": 3, "4": -100})
        tokens_1_T = torch.tensor([[4, 4, 3, 1, 1, 2]])  # the first three are the prompt
        scores = PenaltiesAndBiases(asked, 3)(tokens_1_T, torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
        assert scores.tolist() == [[4.0, 2.0 - 2 * 0.5 - 1.5, 3.0 - 0.5 - 1.5, 4.0, -95.0]]

    @pytest.mark.parametrize("changes", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"frequency_penalty": -2}])
    def test_a_penalty_changes_a_greedy_answer(
        self, program: TrialProgram, capsys: pytest.CaptureFixture[str], changes: dict[str, float]
    ) -> None:
        tokens = [tokens_of(program, capsys, max_new_tokens=40, **each) for each in ({}, changes)]
        different = [len(set(each)) for each in tokens]
        assert (different[0] < different[1]) == (min(changes.values()) > 0), different

    def test_a_bias_of_100_is_the_answer_and_the_log_probabilities_are_the_models(
        self, program: TrialProgram, capsys: pytest.CaptureFixture[str]
    ) -> None:
        chosen = program._renderer.encode_plain("z")[-1]
        plain, biased = (records_of(program, capsys, top_logprobs=1, **each) for each in ({}, biased_to(chosen)))
        assert {token.text for token in biased} == {"z"}
        assert biased[0].top == plain[0].top

    def test_a_bias_of_a_token_that_the_model_does_not_have_is_refused(self, program: TrialProgram) -> None:
        refused = program.answer(question(logit_bias={"99999999": 1}), None)
        assert (refused.reason, refused.param) == ("invalid_value", "logit_bias")


def biased_to(token: int) -> dict[str, Any]:
    return {"logit_bias": {str(token): 100}}


def records_of(program: TrialProgram, capsys: pytest.CaptureFixture[str], **changes: Any) -> list[TokenLogprob]:
    program.answer(question(**changes), None)
    records = map(TrialRecord.model_validate_json, capsys.readouterr().out.splitlines())
    return [token for record in records for token in record.tokens]


def tokens_of(program: TrialProgram, capsys: pytest.CaptureFixture[str], **changes: Any) -> list[str]:
    return [token.text for token in records_of(program, capsys, top_logprobs=0, **changes)]
