from __future__ import annotations

import pytest
import torch

from app.domain.jobs.spec import Hyperparameters
from tests.worker.trainer.helpers import HYPERPARAMETERS
from worker.trainer.objective.optimizer import clip_gradients, divide_gradients, learning_rate, make_optimizer


def rates(total_steps: int = 10, **changes: object) -> list[float]:
    hyperparameters = Hyperparameters.model_validate(HYPERPARAMETERS | {"learning_rate": 1.0} | changes)
    return [learning_rate(hyperparameters, step, total_steps) for step in range(total_steps)]


class TestLearningRate:
    def test_linear_falls_by_equal_amounts_towards_zero(self) -> None:
        assert rates() == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])

    def test_warm_up_rises_from_the_first_step_to_the_peak(self) -> None:
        assert rates(warmup_ratio=0.4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])

    def test_the_first_step_has_a_rate_above_zero(self) -> None:
        assert all(rates(total, warmup_ratio=ratio)[0] > 0 for total in (1, 2, 50) for ratio in (0, 0.03, 1))

    def test_cosine_is_half_way_at_half_time(self) -> None:
        assert rates(lr_scheduler_type="cosine")[5] == pytest.approx(0.5)

    def test_constant_stays_after_the_warm_up(self) -> None:
        assert rates(lr_scheduler_type="constant", warmup_ratio=0.2)[2:] == [1.0] * 8


class TestGradients:
    def test_the_division_turns_a_sum_into_a_mean(self) -> None:
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = torch.tensor([2.0, 4.0, 6.0])
        divide_gradients([parameter], 2)
        assert parameter.grad.tolist() == [1, 2, 3]

    def test_clipping_scales_to_the_norm_and_reports_the_one_before(self) -> None:
        parameter = torch.nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients([parameter], 1.0) == pytest.approx(5.0)
        torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=1e-5)

    def test_adamw_equals_its_formula_on_the_first_step(self) -> None:
        parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        hyperparameters = Hyperparameters.model_validate(HYPERPARAMETERS | {"learning_rate": 0.1, "weight_decay": 0.5})
        optimizer = make_optimizer([parameter], hyperparameters)
        parameter.grad = torch.tensor([0.3, -0.7])
        optimizer.step()
        decayed = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5)
        torch.testing.assert_close(parameter.data, decayed - 0.1 * torch.tensor([1.0, -1.0]))
