from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.jobs.spec import DataParameters, Hyperparameters, JobSpec, RunSpec, TrainerSpec
from app.domain.methods import OWNERS

RUN: dict[str, Any] = {
    "run_id": "a",
    "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj"]},
    "hyperparameters": {
        "n_epochs": 1, "batch_size": 1, "learning_rate": 0.1, "learning_rate_multiplier": None, "warmup_ratio": 0,
        "weight_decay": 0, "max_grad_norm": 1, "lr_scheduler_type": "linear", "context_length": 16,
    },
    "seed": 7,
    "training_file": "a.jsonl",
    "training_file_sha256": "0",
}  # fmt: skip
SPEC: dict[str, Any] = {
    "base": {"name": "tiny", "directory": "tiny", "manifest_sha256": "0"},
    "quantization": None,
    "runs": [RUN],
}


class TestTrainerSpec:
    def test_another_number_of_runs_is_refused(self) -> None:
        for runs in ([], [RUN, RUN | {"run_id": "b"}]):
            with pytest.raises(ValidationError, match="runs"):
                TrainerSpec.model_validate(SPEC | {"runs": runs})


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "values", "param"),
        [
            ("dpo", {}, "beta"),
            ("kto", {"batch_size": 2}, "beta"),
            ("supervised", {"beta": 0.1}, "beta"),
            ("supervised", {"loss_type": "ipo"}, "loss_type"),
            ("orpo", {"beta": 0.1, "loss_type": "ipo"}, "loss_type"),
            ("orpo", {"beta": 0.1, "desirable_weight": 1}, "desirable_weight"),
            ("kto", {"beta": 0.1, "desirable_weight": 1, "undesirable_weight": 1}, "batch_size"),
            ("kto", {"beta": 0.1, "desirable_weight": 1, "batch_size": 2}, "undesirable_weight"),
            ("dpo", {"beta": 2, "loss_type": "simpo"}, "simpo_gamma"),
            ("dpo", {"beta": 0.1, "loss_type": "ipo", "simpo_gamma": 0.5}, "simpo_gamma"),
            ("dpo", {"beta": 0.1, "simpo_gamma": 0.5}, "simpo_gamma"),
        ],
    )
    def test_a_run_with_other_hyperparameters_than_its_method_has_is_refused(
        self, method: str, values: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(ValidationError) as refused:
            RunSpec.model_validate(RUN | {"method": method, "hyperparameters": RUN["hyperparameters"] | values})
        (problem,) = refused.value.errors()
        assert (problem["type"], problem["ctx"]["param"]) == ("invalid_spec", f"hyperparameters.{param}")

    def test_an_unknown_method_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="method"):
            RunSpec.model_validate(RUN | {"method": "grpo"})

    def test_what_earlier_workers_do_not_know_is_stored_only_when_it_is_set(self) -> None:
        earlier = Hyperparameters.model_validate(RUN["hyperparameters"] | {"beta": 0.1})
        assert {name for name in earlier.model_dump() if name in OWNERS} == {"beta"}
        assert earlier.model_copy(update={"loss_type": "ipo"}).model_dump(mode="json")["loss_type"] == "ipo"


class TestDataParameters:
    def test_the_job_and_its_trainer_read_a_file_by_the_same(self) -> None:
        hyperparameters = RUN["hyperparameters"] | {"beta": 0.1}
        shared = {"method": "dpo", "line_rules": 1, "lora": RUN["lora"], "hyperparameters": hyperparameters, "seed": 7}
        job = JobSpec.model_validate(shared | {"base_model": "tiny", "quantization": None})
        trainer = TrainerSpec.model_validate(SPEC | {"runs": [RUN | shared]})
        wanted = DataParameters(method="dpo", line_rules=1, context_length=16)
        assert job.data_parameters == trainer.run.data_parameters == wanted
