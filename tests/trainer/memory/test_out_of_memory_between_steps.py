"""Out of memory between steps: reductions are reported and do not change the training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.evaluations.spec import Prompt
from app.domain.jobs.events import Command, Done, Message, Metric, Planned, SnapshotSaved
from app.domain.jobs.states import ExitCode, Reason
from app.domain.planning.execution_plan import ExecutionPlan
from tests.sentences import Reviewed
from tests.trainer.helpers import Attempt, RecordLog, Trainings, assert_same_adapter, load_tiny_base
from worker.trainer.answers import evaluation
from worker.trainer.checkpoint import verify
from worker.trainer.model import base_check, base_model, checkpoint_tensors
from worker.trainer.model.frozen_linear import Frozen4
from worker.trainer.objective import objective
from worker.trainer.training import shared_work
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


def valid_losses(log: RecordLog) -> list[float | None]:
    return [metric.full_valid_loss for metric in log.of(Metric)]


class TestValidation:
    @pytest.fixture
    def train(self, tiny: Path, examples: Path, tmp_path: Path) -> Callable[..., Attempt]:
        trainings = Trainings(tiny, examples, tmp_path)
        return partial(trainings, validation_file=examples, dropout=0.2)

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

    def test_a_validation_restarts_with_shorter_batches_which_later_attempts_keep(
        self, train: Callable[..., Attempt], short: Callable[[int], Shortage], reviewed: Reviewed
    ) -> None:
        plain = train()
        short(FITS_TOKENS)
        log = train()
        assert log.code == ExitCode.DONE
        first, second = log.warnings  # once, in the first validation; the second one knows
        reviewed(first.message)
        change = {"before": {"validation_row_tokens": None}, "after": {"validation_row_tokens": 512}}
        assert first.data == {"step": 3} | change
        assert second.data["after"] == {"validation_row_tokens": 256}
        assert valid_losses(log)[2::3] == pytest.approx(valid_losses(plain)[2::3], rel=1e-5)
        assert_same_adapter(log, plain)
        assert [saved.step for saved in log.of(SnapshotSaved)] == [0, 3]  # at once, and not in five minutes
        assert log.choices["validation_row_tokens"] == 256

        later = train(resume_from=train(stop_at=(4, Command.DRAIN)).snapshot)
        assert (later.code, later.warnings) == (ExitCode.DONE, [])
        assert valid_losses(later) == valid_losses(log)[4:]
        assert_same_adapter(later, log)

    def test_a_document_that_does_not_fit_fails_the_job_and_names_the_parameter_to_change(
        self, train: Callable[..., Attempt], short: Callable[[int], Shortage], reviewed: Reviewed
    ) -> None:
        short(20)
        log = train()
        assert (log.code, log.failure.reason) == (ExitCode.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY)
        assert log.failure.param == "hyperparameters.context_length"
        reviewed(log.failure.message)
        assert log.warnings[-1].data["after"] == {"cache_weights": False}  # everything was tried

    def test_the_batches_of_a_validation_are_never_longer_than_those_of_a_step(self) -> None:
        assert ExecutionPlan(row_tokens=128).effective_validation_row_tokens == 128
        assert ExecutionPlan(row_tokens=128, validation_row_tokens=256).effective_validation_row_tokens == 128
        assert ExecutionPlan(row_tokens=128, validation_row_tokens=64).effective_validation_row_tokens == 64


class TestSamples:
    @pytest.fixture
    def answered(self, train: Trainings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Attempt]:
        monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 4)
        return partial(train, sample_prompts=("1: red blue", "2: amber amber amber", "3: green"))

    def answers(self, log: RecordLog) -> list[dict[str, Any]]:
        return [message.data for message in log.of(Message) if "prompt" in message.data]

    def test_smaller_batches_of_prompts_have_the_same_answers(
        self, answered: Callable[[], Attempt], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = answered()
        shortage = Shortage(evaluate._generate, lambda base, prompts, *_: len(prompts) > 1)
        monkeypatch.setattr(evaluate, "_generate", shortage)
        log = answered()
        assert log.code == ExitCode.DONE
        assert self.answers(log) == self.answers(plain)
        assert [warning.data["after"]["prompts_at_once"] for warning in log.warnings] == [2, 1]
        assert log.choices["prompts_at_once"] == 1

    def test_if_no_prompt_fits_the_run_continues_without_samples(
        self, answered: Callable[[], Attempt], monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        shortage = Shortage(evaluate._generate, lambda *_: True)
        monkeypatch.setattr(evaluate, "_generate", shortage)
        log = answered()
        assert (log.code, self.answers(log)) == (ExitCode.DONE, [])
        reviewed(log.warnings[-1].message)
        assert shortage.calls == len(log.warnings)  # and none after the last of them
        assert log.choices["prompts_at_once"] == 0


def test_an_evaluation_halves_its_batch_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(base: Any, prompts: list[list[int]], *_: Any) -> list[list[int]]:
        return [prompt[:1] for prompt in prompts]

    shortage = Shortage(answered, lambda base, prompts, *_: len(prompts) > 2)
    monkeypatch.setattr(evaluation, "generate", shortage)
    prompts = [Prompt(row=row, tokens=[row] * (row + 1)) for row in range(5)]
    batches = list(evaluation._generate_all(load_tiny_base(tiny), None, prompts, [], 4))
    assert [len(batch) for _, batch, _ in batches] == [2, 2, 2, 2, 1, 1]
    rows = [(role, prompt.row, tokens) for role, *both in batches for prompt, tokens in zip(*both, strict=True)]
    assert sorted(rows) == [(role, row, [row]) for role in ("adapter", "base") for row in range(5)]


class TestLastCheck:
    def test_the_comparison_is_repeated_without_cached_weights_and_never_has_moments(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        moments: list[int] = []

        def is_short(base: Any, run: Any, directory: Path) -> bool:
            moments.append(len(run.optimizer.state))
            return len(moments) == 1

        monkeypatch.setattr(shared_work, "verify_adapter", Shortage(verify.verify_adapter, is_short))
        log = train()
        assert moments == [0, 0]
        assert log.code == ExitCode.DONE
        (warning,) = log.warnings
        reviewed(warning.message)
        assert warning.data["after"] == {"cache_weights": False}

    def test_if_nothing_is_left_to_free_the_job_fails_and_publishes_nothing(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        shortage = Shortage(shared_work.verify_adapter, lambda *_: True)
        monkeypatch.setattr(shared_work, "verify_adapter", shortage)
        log = train()
        assert (log.code, shortage.calls, log.of(Done)) == (ExitCode.OUT_OF_MEMORY, 2, [])
        assert (log.failure.reason, log.failure.param) == (Reason.OUT_OF_MEMORY, "lora.r")
        reviewed(log.failure.message)


class TestLoading:
    @pytest.mark.parametrize(
        ("quantization", "param"), [({}, "model"), ({"bits": 8}, "quantization"), (None, "quantization")]
    )
    def test_a_base_that_does_not_fit_fails_and_names_the_remedies(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed,
        quantization: dict[str, Any] | None, param: str,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(checkpoint_tensors, "freeze", Shortage(checkpoint_tensors.freeze, lambda *_: True))
        log = train(quantization=quantization)
        assert log.code == ExitCode.OUT_OF_MEMORY
        assert (log.failure.reason, log.failure.param) == (Reason.OUT_OF_MEMORY, param)
        reviewed(log.failure.message)

    def test_a_base_that_does_not_fit_with_its_first_product_fails(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base_check, "hidden_states", Shortage(base_check.hidden_states, lambda *_: True))
        log = train()
        assert (log.code, log.failure.param) == (ExitCode.OUT_OF_MEMORY, "model")

    def test_weights_that_cannot_be_cached_dequantised_are_not_cached(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = train(quantization={}, max_steps=2, lr_scheduler_type="constant")
        layers: list[Frozen4] = []
        cache_weight = Frozen4.cache_weight

        def short(layer: Frozen4, keep: bool) -> None:
            if keep and len(layers) == 3:
                raise RuntimeError(SENTENCE)
            layers.append(layer)
            cache_weight(layer, keep)

        monkeypatch.setattr(Frozen4, "cache_weight", short)
        log = train(quantization={}, lr_scheduler_type="constant", stop_at=(2, Command.DRAIN))
        assert log.code == ExitCode.DRAINED
        assert log.of(Planned)[0].mode.cache_weights
        assert len(log.warnings) == 1
        assert not log.choices["cache_weights"]
        assert all(layer.cached is None for layer in layers)
        assert log.losses == plain.losses
