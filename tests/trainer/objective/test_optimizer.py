from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer

from app.domain.jobs.spec import Hyperparameters
from tests.trainer.helpers import HYPERPARAMETERS, load_tiny_base, make_spec, prepare
from worker.trainer.objective.optimizer import learning_rate


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
