"""An embedding in host memory: the same hidden states and answers, and no copy on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_tiny_base
from tests.trainer.helpers import Trainings, load_tiny_base
from worker.trainer.answers.generate import generate
from worker.trainer.data.batch import PackedBatch
from worker.trainer.memory.hosted_embedding import HostedEmbedding
from worker.trainer.model.base_check import _document, _pack
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.training import run as program


@torch.no_grad()
def computed(base: FrozenBase, batch: PackedBatch) -> tuple[torch.Tensor, list[list[int]]]:
    return hidden_states(base, batch), generate(base, [[5, 9, 17], [3, 8]], None, [], 4)


def test_forwards_and_answers_are_equal_to_the_bit(tmp_path: Path) -> None:
    base = load_tiny_base(make_tiny_base(tmp_path / "base", tie_word_embeddings=False))
    weight_V_D, batch = base.model.get_input_embeddings().weight, _pack(_document(3, 64, 12))
    expected, before = computed(base, batch), weight_V_D.clone()
    embedding = HostedEmbedding(base)
    assert embedding.size_bytes == before.nbytes
    for _ in range(2):
        embedding.set(in_host_memory=True)
        assert weight_V_D.untyped_storage().nbytes() == weight_V_D.itemsize
        assert weight_V_D.shape == before.shape
        found = computed(base, batch)
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]
    embedding.set(in_host_memory=False)
    assert torch.equal(weight_V_D, before)
    assert torch.equal(computed(base, batch)[0], expected[0])


@pytest.mark.parametrize("to_host", [True, False])
def test_one_that_is_also_the_head_stays(tiny: Path, to_host: bool) -> None:
    base = load_tiny_base(tiny)
    embedding, before = HostedEmbedding(base), base.head_V_D.clone()
    embedding.set(in_host_memory=to_host)
    assert embedding.size_bytes == 0
    assert torch.equal(base.head_V_D, before)


def test_a_run_has_the_same_adapter_and_passes_its_last_check(
    train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CPU plans it, as its memory is the host's."""
    options: dict[str, Any] = {
        "base": make_tiny_base(tmp_path / "base", tie_word_embeddings=False),
        "sample_prompts": ("1: red",),
    }
    plain, plan_layout = train(**options), program._plan_layout
    offload = {"recompute": "everything", "recompute_layers": 0, "offload": True}
    monkeypatch.setattr(program, "_plan_layout", lambda *args: plan_layout(*args).model_copy(update=offload))
    hosted = train(**options)
    assert (plain.code, hosted.code) == (0, 0)
    assert hosted.losses == plain.losses
    assert all(torch.equal(tensor, plain.adapter()[name]) for name, tensor in hosted.adapter().items())
