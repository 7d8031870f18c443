from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer

from app.domain.jobs.spec import Hyperparameters
from app.domain.planning.memory import optimizer_bytes
from tests.trainer.helpers import HYPERPARAMETERS, load_tiny_base, make_spec, prepare
from worker.trainer.objective.optimizer import (
    AdamW8bit,
    allocate_moments,
    can_repeat_step,
    learning_rate,
    make_optimizer,
    moments_of,
    restore_moments,
)

SENTENCE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


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


class TestWeightDecay:
    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
    def test_the_same_parameters_decay_as_with_transformers_trainer(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        """Norms and biases do not decay; LoRA's factors, DoRA's magnitudes, and other matrices do."""
        modules = ["norm", "input_layernorm"]
        model = AutoModelForCausalLM.from_pretrained(tiny)
        config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "down_proj"], modules_to_save=modules)
        peft_model = get_peft_model(model, config)
        trained = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
        expected = trained & set(Trainer.get_decay_parameter_names(None, peft_model))
        spec = make_spec(
            tiny, examples, use_dora=True, target_modules=["q_proj", "down_proj"], modules_to_save=modules,
            weight_decay=0.1,
        )  # fmt: skip
        run = prepare(spec, load_tiny_base(tiny), tmp_path)
        decayed = {
            id(parameter)
            for group in run.optimizer.param_groups
            if group["weight_decay"]
            for parameter in group["params"]
        }
        named = run.adapter.named_parameters()
        assert {name for name, parameter in named.items() if id(parameter) in decayed} == {
            name.replace(".default", "").replace(".modules_to_save", "").replace("_vector.weight", "_vector")
            for name in expected
        }
        assert 0 < len(decayed) < len(named)


class TestEightBits:
    """Two matrices, and a vector that is too small for 8 bits, trained towards zero."""

    class Trained:
        def __init__(self, optimizer: str) -> None:
            generator = torch.Generator().manual_seed(7)
            self.hyperparameters = Hyperparameters.model_validate(HYPERPARAMETERS | {"optimizer": optimizer})
            shapes = {"a": (64, 100), "b": (100, 64), "c": (10,)}
            self.parameters = {
                name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
            }
            self.optimizer = make_optimizer(self.parameters, self.hyperparameters)
            allocate_moments(self.optimizer)

        def steps(self, first: int, last: int) -> None:
            for step in range(first, last):
                generator = torch.Generator().manual_seed(step)
                for parameter in self.parameters.values():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.grad = parameter.detach() + 0.1 * noise
                self.optimizer.step()

        def values(self) -> torch.Tensor:
            return torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])

    @pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
    def test_restored_moments_continue_to_the_same_bits(self, optimizer: str) -> None:
        whole, first, second = (self.Trained(optimizer) for _ in range(3))
        whole.steps(0, 6)
        first.steps(0, 3)
        for mine, theirs in zip(first.parameters.values(), second.parameters.values(), strict=True):
            theirs.data.copy_(mine.data)
            saved = {name: value.clone() for name, value in moments_of(first.optimizer, mine).items()}
            restore_moments(second.optimizer, theirs, saved)
        second.steps(3, 6)
        assert torch.equal(second.values(), whole.values())

    def test_the_result_is_near_that_in_float32(self) -> None:
        eight, exact, start = self.Trained("adamw_8bit"), self.Trained("adamw"), self.Trained("adamw")
        for each in (eight, exact):
            each.steps(0, 60)
        moved = (exact.values() - start.values()).norm()
        assert 0 < (eight.values() - exact.values()).norm() < 0.05 * moved
        torch.testing.assert_close(eight.parameters["c"], exact.parameters["c"])

    def test_the_moments_have_the_bytes_of_the_plan(self) -> None:
        trained = self.Trained("adamw_8bit")
        large = [trained.parameters[name] for name in "ab"]
        moments = [moments_of(trained.optimizer, parameter) for parameter in large]
        taken = sum(tensor.nbytes for each in moments for tensor in each.values())
        planned = optimizer_bytes(trained.hyperparameters) - 8
        assert taken / sum(parameter.numel() for parameter in large) == pytest.approx(planned, rel=0.02)

    def test_a_step_that_ran_out_of_memory_within_it_is_not_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its first parameter would be updated twice."""
        trained, update, calls = self.Trained("adamw_8bit"), AdamW8bit.update_step, []

        def update_or_fail(optimizer: Any, group: Any, parameter: Any, *index: int) -> None:
            calls.append(parameter)
            if len(calls) == 2:
                raise RuntimeError(SENTENCE)
            update(optimizer, group, parameter, *index)

        monkeypatch.setattr(AdamW8bit, "update_step", update_or_fail)
        with pytest.raises(RuntimeError, match="allocate"):
            trained.steps(0, 1)
        assert len(calls) == 2
        assert not can_repeat_step(trained.optimizer)
        trained.steps(1, 2)
        assert can_repeat_step(trained.optimizer)
