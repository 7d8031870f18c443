"""What the comparison of a saved adapter finds; test_variants.py shows that those of every variant pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from tests.trainer.helpers import load_tiny_base, make_one_step, make_spec, prepare, save_adapter
from worker.trainer.checkpoint import verify
from worker.trainer.checkpoint.verify import verify_adapter
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.failures import Failure
from worker.trainer.training.state import Run

Trained = tuple[FrozenBase, Run]


@pytest.fixture(scope="module")
def made(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenBase, Run, Path]:
    base = load_tiny_base(tiny, QuantizationSpec())
    run = prepare(make_spec(tiny, examples), base, Path("unused"))
    for _ in range(4):
        make_one_step(base, run)
    return base, run, save_adapter(base, run, tmp_path_factory.mktemp("made"))


@pytest.fixture
def trained(made: tuple[FrozenBase, Run, Path]) -> Trained:
    return made[:2]


@pytest.fixture
def directory(made: tuple[FrozenBase, Run, Path], tmp_path: Path) -> Path:
    """A copy of the saved adapter, which a test may change."""
    return shutil.copytree(made[2], tmp_path / "adapter")


def change_tensors(directory: Path, change: Any) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors, next(name for name in tensors if "q_proj.lora_B" in name))
    save_file(tensors, directory / "adapter_model.safetensors")


def test_a_long_document_is_truncated(trained: Trained, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VERIFY_TOKENS", 16)
    seen, hidden_states = [], verify.hidden_states

    def watched(base: Any, batch: Any, *more: Any, **how: Any) -> torch.Tensor:
        seen.append(len(batch.tokens_T))
        hidden_T_D: torch.Tensor = hidden_states(base, batch, *more, **how)
        return hidden_T_D

    monkeypatch.setattr(verify, "hidden_states", watched)
    verify_adapter(*trained, directory)
    assert seen == [16, 16]


def test_one_altered_number_is_found(trained: Trained, directory: Path) -> None:
    change_tensors(directory, lambda tensors, name: tensors[name][0, 0].add_(1e-6))
    with pytest.raises(Failure, match=r"q_proj\.lora_B\.weight differs") as caught:
        verify_adapter(*trained, directory)
    assert caught.value.reason is Reason.ADAPTER_MISMATCH


def test_a_missing_tensor_is_found(trained: Trained, directory: Path) -> None:
    change_tensors(directory, lambda tensors, name: tensors.pop(name))
    with pytest.warns(UserWarning, match="missing"), pytest.raises(Failure):
        verify_adapter(*trained, directory)


@pytest.mark.parametrize("changes", [{"lora_alpha": 9}, {"use_rslora": True}])
def test_a_wrong_scale_is_found_and_the_adapted_layers_are_restored(
    trained: Trained, directory: Path, changes: dict[str, object]
) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Failure, match="logits differ"):
        verify_adapter(*trained, directory)
    base = trained[0]
    assert all(base.model.get_submodule(name) is layer for name, layer in base.layers.items())
