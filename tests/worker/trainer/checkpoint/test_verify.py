from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.artifacts.engines import compatibility
from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from tests.worker.trainer.helpers import FLOAT32, load_tiny_base, make_one_step, make_spec, prepare
from worker.trainer.checkpoint import verify
from worker.trainer.checkpoint.checkpoint import save_checkpoint
from worker.trainer.checkpoint.verify import TOLERANCE, verify_adapter
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.failures import Failure
from worker.trainer.training.state import Run

Trained = tuple[FrozenBase, Run, Path]


def train(tiny: Path, examples: Path, where: Path, quantization: QuantizationSpec | None, **changes: object) -> Trained:
    base = load_tiny_base(tiny, quantization)
    run = prepare(make_spec(tiny, examples, **changes), base, where)
    facts = json.loads(make_spec(tiny, examples, **changes).model_dump_json())
    run.provenance = {
        "base_model": {"name": "tiny"},
        "quantization": facts["quantization"],
        "lora": facts["runs"][0]["lora"],
        "compatibility": compatibility(run.spec.lora, run.spec.run_id).model_dump(mode="json"),
        "hyperparameters": facts["runs"][0]["hyperparameters"],
        "seed": 7,
        "versions": {},
    }
    for _ in range(4):
        make_one_step(base, run)
    return base, run, save_checkpoint(run, base)


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def a_q_proj(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if "q_proj.lora_B" in name)


class TestVerifyAdapter:
    @pytest.mark.parametrize("quantization", [FLOAT32, QuantizationSpec(), QuantizationSpec(type="fp4"), None])
    def test_a_trained_adapter_passes_with_a_wide_margin(
        self, tiny: Path, examples: Path, tmp_path: Path, quantization: QuantizationSpec | None
    ) -> None:
        base, run, directory = train(tiny, examples, tmp_path, quantization)
        assert verify_adapter(base, run, directory) < TOLERANCE / 10

    def test_also_with_rslora_few_targets_and_dropout(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run, directory = train(
            tiny, examples, tmp_path, FLOAT32, use_rslora=True, target_modules=["v_proj"], dropout=0.3
        )
        assert verify_adapter(base, run, directory) < TOLERANCE / 10

    def test_verification_does_not_change_further_training(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run, directory = train(tiny, examples, tmp_path / "a", QuantizationSpec())
        reference_base, reference, _ = train(tiny, examples, tmp_path / "b", QuantizationSpec())
        verify_adapter(base, run, directory)
        assert make_one_step(base, run).loss == make_one_step(reference_base, reference).loss

    def test_a_long_document_is_truncated(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, run, directory = train(tiny, examples, tmp_path, FLOAT32)
        monkeypatch.setattr(verify, "MAX_TOKENS", 16)
        seen, hidden_states = [], verify.hidden_states

        def watched(base: Any, batch: Any, *more: Any, **how: Any) -> torch.Tensor:
            seen.append(len(batch.tokens_T))
            hidden_T_D: torch.Tensor = hidden_states(base, batch, *more, **how)
            return hidden_T_D

        monkeypatch.setattr(verify, "hidden_states", watched)
        verify_adapter(base, run, directory)
        assert seen == [16, 16]

    def test_one_altered_number_is_found(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run, directory = train(tiny, examples, tmp_path, QuantizationSpec())

        def nudge(tensors: dict[str, torch.Tensor]) -> None:
            tensors[a_q_proj(tensors)][0, 0] += 1e-6

        change_tensors(directory, nudge)
        with pytest.raises(Failure, match=r"q_proj\.lora_B\.weight differs") as caught:
            verify_adapter(base, run, directory)
        assert caught.value.reason is Reason.ADAPTER_MISMATCH

    def test_a_missing_tensor_is_found(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base, run, directory = train(tiny, examples, tmp_path, QuantizationSpec())

        def drop(tensors: dict[str, torch.Tensor]) -> None:
            del tensors[a_q_proj(tensors)]

        change_tensors(directory, drop)
        with pytest.warns(UserWarning, match="missing"), pytest.raises(Failure):
            verify_adapter(base, run, directory)

    @pytest.mark.parametrize("changes", [{"lora_alpha": 9}, {"use_rslora": True}])
    def test_a_wrong_scale_is_found_although_every_tensor_is_equal(
        self, tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, object]
    ) -> None:
        base, run, directory = train(tiny, examples, tmp_path, QuantizationSpec())
        change_config(directory, **changes)
        with pytest.raises(Failure, match="logits differ"):
            verify_adapter(base, run, directory)

    def test_the_adapted_layers_are_restored_also_after_a_failure(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        base, run, directory = train(tiny, examples, tmp_path, QuantizationSpec())
        change_config(directory, lora_alpha=9)
        with pytest.raises(Failure):
            verify_adapter(base, run, directory)
        assert all(base.model.get_submodule(name) is layer for name, layer in base.layers.items())
