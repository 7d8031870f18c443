"""Scoring without generating: an answer counts as right exactly if greedy decoding would have written it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.jobs.spec import QuantizationSpec
from app.system.artifact_directory import ADAPTER_WEIGHTS
from benchmarks.score import load_adapter, score
from tests.tiny import make_tiny_base
from tests.trainer.helpers import CPU_KERNELS, dataset_of, make_spec
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.data.batch import pack_batches
from worker.trainer.model.base_model import FrozenBase, hidden_states, load_base


@pytest.fixture
def base(tmp_path: Path) -> FrozenBase:
    return load_base("tiny", make_tiny_base(tmp_path / "base"), QuantizationSpec(), torch.bfloat16, CPU_KERNELS)


@pytest.fixture
def adapter(base: FrozenBase, tmp_path: Path) -> LoraAdapter:
    """From disk; it answers otherwise than the base."""
    (tmp_path / "train.jsonl").write_text("")
    run = make_spec(base.directory, tmp_path / "train.jsonl").run
    fresh = make_adapter(run.lora, run.seed, base.layers, CPU_KERNELS)
    dice = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.empty_like(tensor).uniform_(-0.5, 0.5, generator=dice)
        for name, tensor in fresh.named_parameters().items()
    }
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    return load_adapter(base, run, tmp_path)


@torch.no_grad()
def greedy(base: FrozenBase, adapter: LoraAdapter, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        batch = next(pack_batches(dataset_of((tokens, [len(tokens) - 1])), [0], 512))
        tokens.append(int((hidden_states(base, batch, adapter)[-1] @ base.head_V_D.t()).argmax()))
    return tokens


def test_a_greedy_answer_is_exact_and_one_with_another_token_is_not(base: FrozenBase, adapter: LoraAdapter) -> None:
    answers = [greedy(base, adapter, prompt, 5) for prompt in ([7, 8, 9], [70, 71, 72])]
    wrong = [*answers[1][:-2], (answers[1][-2] + 1) % 256, answers[1][-1]]
    found = score(base, adapter, dataset_of(*((tokens, range(3, 8)) for tokens in (*answers, wrong))))
    assert found.exact == (True, True, False)
    assert found.tokens == (5, 5, 5)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(sum(found.nats) / 15)


def test_it_is_the_adapter_that_is_scored(base: FrozenBase, adapter: LoraAdapter) -> None:
    dataset = dataset_of(([7, 8, 9, 10], [2, 3]))
    tuned = score(base, adapter, dataset)
    adapter.layers.clear()
    assert score(base, adapter, dataset).nats != tuned.nats
