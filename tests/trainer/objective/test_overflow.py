"""Steps that are not finite in float16: repeated, skipped, or the end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Message, Metric, SnapshotSaved
from app.domain.jobs.states import ExitCode, Reason
from tests.sentences import Reviewed
from tests.trainer.helpers import RecordLog, Trainings
from worker.trainer.objective import objective
from worker.trainer.training import loop

FLOAT16 = {"compute_dtype": "float16"}


def warnings_of(log: RecordLog) -> list[Message]:
    """The events of overflows; another one says that a processor is slow in float16."""
    return [message for message in log.of(Message) if message.level == "warn" and message.message.startswith("Step")]


def plant_overflow(monkeypatch: pytest.MonkeyPatch, is_overflow: Callable[[int], bool]) -> None:
    """The gradient norm of the steps whose index (from 0, with repetitions) is chosen is infinite."""
    clip, calls = loop.clip_gradients, []

    def clipped(parameters: Any, max_norm: float) -> float:
        calls.append(max_norm)
        return math.inf if is_overflow(len(calls) - 1) else clip(parameters, max_norm)

    monkeypatch.setattr(loop, "clip_gradients", clipped)


def plant_loss_that_is_no_number(monkeypatch: pytest.MonkeyPatch, is_planted: Callable[[int], bool]) -> None:
    """The loss of the packed batches whose index (from 0, the probe's first) is chosen is not a number."""
    hidden_states, calls = objective.hidden_states, []

    def planted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        hidden_T_D = hidden_states(*arguments)
        return hidden_T_D * torch.nan if is_planted(len(calls) - 1) else hidden_T_D

    monkeypatch.setattr(objective, "hidden_states", planted)


class TestGradient:
    def test_a_step_that_overflows_is_repeated_with_a_smaller_scale_and_the_same_result(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = train(quantization=FLOAT16)
        plant_overflow(monkeypatch, lambda call: call in (1, 2))
        log = train(quantization=FLOAT16)
        assert log.code == ExitCode.DONE
        assert [warning.data["loss_scale"] for warning in warnings_of(log)] == [2**-4, 2**-8]
        assert log.losses == pytest.approx(plain.losses, rel=2e-3)
        mine = log.adapter()
        for name, tensor in plain.adapter().items():
            assert (mine[name] - tensor).norm() <= 0.05 * tensor.norm(), name
        assert log.of(SnapshotSaved)[-1].step == 1  # saved at once: a later attempt continues with the scale

    def test_an_overflow_in_a_dtype_with_the_range_of_float32_ends_the_run(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plant_overflow(monkeypatch, lambda call: call == 1)
        log = train(quantization={})
        assert (log.code, log.failure.reason) == (ExitCode.BAD_SPEC, Reason.NON_FINITE_LOSS)


class TestLoss:
    def test_a_step_without_a_loss_is_skipped_and_the_event_names_its_lines(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed
    ) -> None:
        plant_loss_that_is_no_number(monkeypatch, lambda call: call == 2)
        log = train(quantization=FLOAT16)
        assert log.code == ExitCode.DONE
        (warning,) = warnings_of(log)
        reviewed(warning.message)
        assert len(warning.data["lines"]) == 4
        assert [metric.step for metric in log.of(Metric)] == [1, 3, 4, 5, 6]

    def test_the_number_of_skipped_steps_in_a_row_is_bounded(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plant_loss_that_is_no_number(monkeypatch, lambda call: call >= 2)
        log = train(quantization=FLOAT16)
        assert (log.code, log.failure.reason) == (ExitCode.BAD_SPEC, Reason.NON_FINITE_LOSS)
        assert len(warnings_of(log)) == 3
        assert "Step 5" in log.failure.message
