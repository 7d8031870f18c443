"""Out of memory between steps: reductions are reported and do not change the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Command, Done, Message, Metric, Planned, SnapshotSaved
from app.domain.jobs.spec import TrainerSpec
from app.domain.jobs.states import ExitCode, Reason
from app.domain.planning.execution_plan import ExecutionPlan
from tests.worker.trainer.helpers import FLOAT32, RecordLog, failure, final_adapter, make_spec, run_trainer
from worker.trainer.answers import compare
from worker.trainer.checkpoint import verify
from worker.trainer.memory.out_of_memory import reduce_after_kills
from worker.trainer.model import base_check, base_model, checkpoint_tensors
from worker.trainer.model.frozen_linear import Frozen4
from worker.trainer.objective import objective
from worker.trainer.training import step_actions
from worker.trainer.validation import evaluate

SENTENCE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
FITS_TOKENS = 300  # of a row; the longest document has 120


class Shortage:
    """Replaces a function: raises out of memory if `is_short(arguments)`, else calls it."""

    def __init__(self, instead_of: Callable[..., Any], is_short: Callable[..., bool]) -> None:
        self.instead_of = instead_of
        self.is_short = is_short
        self.calls = 0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.calls += 1
        if self.is_short(*arguments):
            raise RuntimeError(SENTENCE)
        return self.instead_of(*arguments, **more)


def is_validating() -> bool:
    return not torch.is_grad_enabled()


def first_time() -> Callable[..., bool]:
    tries = iter([True])
    return lambda *_: next(tries, False)


def warnings_of(log: RecordLog) -> list[Message]:
    return [message for message in log.of(Message) if message.level == "warn"]


def choices_of(log: RecordLog, workdir: Path) -> dict[str, Any]:
    directory = workdir / str(log.of(SnapshotSaved)[-1].directory)
    choices: dict[str, Any] = json.loads((directory / "MANIFEST.json").read_text())["choices"]
    return choices


def valid_losses(log: RecordLog) -> list[float | None]:
    return [metric.full_valid_loss for metric in log.of(Metric)]


def assert_same_adapter(one: tuple[RecordLog, Path], other: tuple[RecordLog, Path]) -> None:
    mine, theirs = final_adapter(*one), final_adapter(*other)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


class TestValidation:
    @pytest.fixture
    def spec(self, tiny: Path, examples: Path) -> TrainerSpec:
        return make_spec(tiny, examples, validation_file=examples, quantization=FLOAT32, dropout=0.2)

    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Shortage]:
        """Raise out of memory in each packed batch of a validation with more tokens."""

        def make(fits_tokens: int) -> Shortage:
            def is_short(base: Any, batch: Any, adapter: Any) -> bool:
                return is_validating() and len(batch.tokens_T) > fits_tokens

            shortage = Shortage(base_model.hidden_states, is_short)
            monkeypatch.setattr(objective, "hidden_states", shortage)
            return shortage

        return make

    def test_it_restarts_with_shorter_batches_and_has_the_same_loss(
        self, spec: TrainerSpec, tmp_path: Path, short: Callable[[int], Shortage]
    ) -> None:
        _, plain = run_trainer(spec, tmp_path / "plain")
        short(FITS_TOKENS)
        code, log = run_trainer(spec, tmp_path / "short")
        assert code == ExitCode.DONE
        first, second = warnings_of(log)  # once, in the first validation; the second one knows
        assert first.message == (
            "Out of memory while measuring the validation loss after step 3. The validation restarts with packed "
            "batches of 512 tokens instead of 1,024; the loss stays the same within rounding."
        )
        change = {"before": {"validation_row_tokens": None}, "after": {"validation_row_tokens": 512}}
        assert first.data == {"step": 3} | change
        assert second.data["after"] == {"validation_row_tokens": 256}
        assert valid_losses(log)[2::3] == pytest.approx(valid_losses(plain)[2::3], rel=1e-5)
        assert_same_adapter((log, tmp_path / "short"), (plain, tmp_path / "plain"))

    def test_a_later_attempt_keeps_the_reduction_and_has_the_same_result_to_the_bit(
        self, spec: TrainerSpec, tmp_path: Path, short: Callable[[int], Shortage]
    ) -> None:
        short(FITS_TOKENS)
        _, whole = run_trainer(spec, tmp_path / "whole")
        assert [saved.step for saved in whole.of(SnapshotSaved)] == [0, 3]  # at once, and not in five minutes
        assert choices_of(whole, tmp_path / "whole")["validation_row_tokens"] == 256

        _, first = run_trainer(spec, tmp_path / "first", stop_at=(4, Command.DRAIN))
        snapshot = tmp_path / "first" / first.of(SnapshotSaved)[-1].directory
        resumed = spec.run.model_copy(update={"resume_from": snapshot})
        code, second = run_trainer(spec.model_copy(update={"runs": (resumed,)}), tmp_path / "second")
        assert code == ExitCode.DONE
        assert warnings_of(second) == []
        assert valid_losses(second) == valid_losses(whole)[4:]
        assert_same_adapter((second, tmp_path / "second"), (whole, tmp_path / "whole"))

    def test_a_document_that_does_not_fit_fails_the_job_and_names_the_parameter_to_change(
        self, spec: TrainerSpec, tmp_path: Path, short: Callable[[int], Shortage]
    ) -> None:
        short(20)
        code, log = run_trainer(spec, tmp_path)
        assert code == ExitCode.OUT_OF_MEMORY
        assert (failure(log).reason, failure(log).param) == (Reason.OUT_OF_MEMORY, "hyperparameters.context_length")
        assert failure(log).message.startswith("The longest document of the validation file has ")
        assert warnings_of(log)[-1].data["after"] == {"cache_weights": False}  # everything was tried

    def test_the_batches_of_a_validation_are_never_longer_than_those_of_a_step(self) -> None:
        assert ExecutionPlan(row_tokens=128).effective_validation_row_tokens == 128
        assert ExecutionPlan(row_tokens=128, validation_row_tokens=256).effective_validation_row_tokens == 128
        assert ExecutionPlan(row_tokens=128, validation_row_tokens=64).effective_validation_row_tokens == 64

    def test_after_a_kill_by_the_kernel_batches_and_prompts_are_reduced_from_the_start(
        self, spec: TrainerSpec, tmp_path: Path
    ) -> None:
        killed = spec.model_copy(update={"out_of_memory_kills": 1})
        _, log = run_trainer(killed, tmp_path, stop_at=(1, Command.DRAIN))
        choices = choices_of(log, tmp_path)
        assert choices["validation_row_tokens"] == choices["row_tokens"] // 2
        assert choices["prompts_at_once"] == 2
        assert reduce_after_kills(ExecutionPlan(**choices | {"prompts_at_once": 0}), 2).prompts_at_once == 0

    def test_another_error_ends_the_run(
        self, spec: TrainerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: Any) -> torch.Tensor:
            if is_validating():
                raise RuntimeError("shapes do not match")
            return base_model.hidden_states(*arguments)

        monkeypatch.setattr(objective, "hidden_states", broken)
        code, log = run_trainer(spec, tmp_path)
        assert (code, failure(log).reason) == (ExitCode.INTERNAL, Reason.TRAINER_CRASHED)
        assert warnings_of(log) == []


class TestSamples:
    @pytest.fixture
    def spec(self, tiny: Path, examples: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerSpec:
        monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 4)
        prompts = ("1: red blue", "2: amber amber amber", "3: green")
        return make_spec(tiny, examples, sample_prompts=prompts, quantization=FLOAT32)

    def answers(self, log: RecordLog) -> list[dict[str, Any]]:
        return [message.data for message in log.of(Message) if "prompt" in message.data]

    def test_smaller_batches_of_prompts_have_the_same_answers(
        self, spec: TrainerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, plain = run_trainer(spec, tmp_path / "plain")
        shortage = Shortage(evaluate._generate, lambda base, prompts, *_: len(prompts) > 1)
        monkeypatch.setattr(evaluate, "_generate", shortage)
        code, log = run_trainer(spec, tmp_path / "short")
        assert code == ExitCode.DONE
        assert self.answers(log) == self.answers(plain)
        assert [warning.data["after"] for warning in warnings_of(log)] == [
            {"prompts_at_once": 2}, {"prompts_at_once": 1}
        ]  # fmt: skip
        assert choices_of(log, tmp_path / "short")["prompts_at_once"] == 1

    def test_if_no_prompt_fits_the_run_continues_without_samples(
        self, spec: TrainerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shortage = Shortage(evaluate._generate, lambda *_: True)
        monkeypatch.setattr(evaluate, "_generate", shortage)
        code, log = run_trainer(spec, tmp_path)
        assert (code, self.answers(log)) == (ExitCode.DONE, [])
        assert warnings_of(log)[-1].message.endswith(
            "A single sample prompt does not fit, so none is answered from now on; training is not affected."
        )
        assert shortage.calls == len(warnings_of(log))  # and none after the last of them
        assert choices_of(log, tmp_path)["prompts_at_once"] == 0

    def test_compare_answers_halves_its_batch_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def answered(model: Any, tokenizer: Any, prompts: list[Any], device: str) -> list[str]:
            return [prompt[0]["content"].upper() for prompt in prompts]

        shortage = Shortage(answered, lambda model, tokenizer, prompts, device: len(prompts) > 2)
        monkeypatch.setattr(compare, "_answer_batch", shortage)
        prompts = [[{"content": letter}] for letter in "abcde"]
        assert compare._answers(None, None, prompts, "cpu") == ["A", "B", "C", "D", "E"]
        assert "Out of memory with 5 prompts per batch" in capsys.readouterr().err


class TestLastCheck:
    @pytest.mark.parametrize("place", ["while PEFT loads", "when it has loaded"])
    def test_it_is_repeated_without_the_optimizers_moments(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        if place == "while PEFT loads":
            load = Shortage(verify.PeftModel.load_adapter, first_time())
            monkeypatch.setattr(verify.PeftModel, "load_adapter", lambda *each, **more: load(*each, **more))
        else:
            read = Shortage(verify.get_peft_model_state_dict, first_time())
            monkeypatch.setattr(verify, "get_peft_model_state_dict", read)
        code, log = run_trainer(make_spec(tiny, examples), tmp_path)
        assert (code, log.last.kind) == (ExitCode.DONE, "done")
        (warning,) = warnings_of(log)
        assert warning.message.startswith(
            "Out of memory while comparing the saved adapter after step 6. The comparison is repeated without the"
        )
        assert warning.data["after"] == {"cache_weights": False}

    def test_if_nothing_is_left_to_free_the_job_fails_and_publishes_nothing(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shortage = Shortage(step_actions.verify_adapter, lambda *_: True)
        monkeypatch.setattr(step_actions, "verify_adapter", shortage)
        code, log = run_trainer(make_spec(tiny, examples), tmp_path)
        assert (code, shortage.calls) == (ExitCode.OUT_OF_MEMORY, 2)
        assert (failure(log).reason, failure(log).param) == (Reason.OUT_OF_MEMORY, "lora.r")
        assert failure(log).message.startswith("The adapter of step 6 is saved, but there is not enough memory")
        assert not log.of(Done)


class TestLoading:
    @pytest.mark.parametrize(
        ("quantization", "param", "bits"),
        [({}, "model", "4 bits"), ({"bits": 8}, "quantization", "8 bits"), (None, "quantization", "16 bits")],
    )
    def test_a_base_that_does_not_fit_fails_and_names_the_remedies(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        quantization: dict[str, Any] | None, param: str, bits: str,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(checkpoint_tensors, "freeze", Shortage(checkpoint_tensors.freeze, lambda *_: True))
        code, log = run_trainer(make_spec(tiny, examples, quantization=quantization), tmp_path)
        assert code == ExitCode.OUT_OF_MEMORY
        assert (failure(log).reason, failure(log).param) == (Reason.OUT_OF_MEMORY, param)
        assert f"The base model tiny does not fit into memory in {bits}" in failure(log).message

    def test_so_does_a_base_that_does_not_fit_together_with_its_first_product(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base_check, "hidden_states", Shortage(base_check.hidden_states, lambda *_: True))
        code, log = run_trainer(make_spec(tiny, examples), tmp_path)
        assert (code, failure(log).param) == (ExitCode.OUT_OF_MEMORY, "model")

    def test_weights_that_cannot_be_cached_dequantised_are_not_cached(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, plain = run_trainer(make_spec(tiny, examples), tmp_path / "plain")
        layers: list[Frozen4] = []
        cache_weight = Frozen4.cache_weight

        def short(layer: Frozen4, keep: bool) -> None:
            if keep and len(layers) == 3:
                raise RuntimeError(SENTENCE)
            layers.append(layer)
            cache_weight(layer, keep)

        monkeypatch.setattr(Frozen4, "cache_weight", short)
        code, log = run_trainer(make_spec(tiny, examples), tmp_path / "short", stop_at=(5, Command.DRAIN))
        assert code == ExitCode.DRAINED
        assert log.of(Planned)[0].mode.cache_weights
        (warning,) = warnings_of(log)
        assert warning.message.startswith("Out of memory while the weights were dequantized.")
        assert not choices_of(log, tmp_path / "short")["cache_weights"]
        assert all(layer.cached is None for layer in layers)
        assert log.losses == plain.losses[:5]
