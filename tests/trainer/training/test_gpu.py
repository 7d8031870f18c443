"""What `make gpu-check` does not train on an NVIDIA GPU: pairs and variants of LoRA. Skipped if there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import Started
from tests.gpu_check.checks import fall_problem
from tests.trainer.helpers import Trainings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_the_loss_of_pairs_falls_as_on_a_cpu(train: Trainings, pairs: Path) -> None:
    changes = {"training_file": pairs, "method": "dpo", "beta": 0.5, "learning_rate": 1e-3}
    log = train(device="cuda", **changes)
    assert log.code == 0, log.last
    assert log.of(Started)[0].device.startswith("cuda")
    assert fall_problem(log.losses, train(**changes).losses) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True, "dropout": 0.1},
        {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        {"use_dora": True, "modules_to_save": ["lm_head"], "quantization": {"bits": 8}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "quantization": {"bits": 8}},
        {"use_dora": True, "quantization": None},
    ],
)
def test_a_variant_trains_and_verifies(train: Trainings, changes: dict[str, Any]) -> None:
    log = train(**{"quantization": {}, "device": "cuda", "sample_prompts": ["red"]} | changes)
    assert log.code == 0, log.last
