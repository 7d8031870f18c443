from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.jobs.spec import DataParameters, JobSpec, TrainerSpec

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


class TestDataParameters:
    def test_the_job_and_its_trainer_read_a_file_by_the_same(self) -> None:
        hyperparameters = RUN["hyperparameters"] | {"beta": 0.1}
        shared = {"method": "dpo", "line_rules": 1, "lora": RUN["lora"], "hyperparameters": hyperparameters, "seed": 7}
        job = JobSpec.model_validate(shared | {"base_model": "tiny", "quantization": None})
        trainer = TrainerSpec.model_validate(SPEC | {"runs": [RUN | shared]})
        wanted = DataParameters(method="dpo", line_rules=1, context_length=16)
        assert job.data_parameters == trainer.run.data_parameters == wanted
