from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from app.domain.jobs.spec import QuantizationSpec
from app.domain.planning.execution_plan import Recompute
from tests.trainer.helpers import load_tiny_base, make_spec, prepare
from worker.trainer.kernels.modules import swiglu
from worker.trainer.memory import activation_checkpointing
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.objective.losses import linear_cross_entropy
from worker.trainer.training.state import Run

MODES: list[tuple[Recompute, int]] = [("elementwise", 0), ("layers", 1), ("everything", 0)]


class Kept:
    """Counts the bytes of a tensor that autograd keeps, while it keeps them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Bench:
    """A run on a tiny base, by default with dropout; measures one batch with a mode of recomputation."""

    def __init__(self, tiny: Path, examples: Path, tmp_path: Path, dtype: str, **changes: Any) -> None:
        self.base: FrozenBase = load_tiny_base(tiny, QuantizationSpec(compute_dtype=dtype))  # type: ignore[arg-type]
        self.recomputation = Recomputation(self.base)
        self.run: Run = prepare(make_spec(tiny, examples, **{"dropout": 0.3} | changes), self.base, tmp_path)
        dice = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(torch.empty_like(parameter).normal_(std=0.02, generator=dice))
        self.state = self.run.adapter.generator.get_state()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.run.parameters

    def step(
        self, mode: Recompute, count: int = 0, *, offload: bool = False, mlp_chunk_tokens: int = 0
    ) -> tuple[float, list[torch.Tensor], torch.Tensor, int]:
        """Return (loss, gradients, state of the generator afterwards, bytes kept between forward and backward)."""
        self.recomputation.set(mode, count, offload=offload, mlp_chunk_tokens=mlp_chunk_tokens)
        self.run.adapter.generator.set_state(self.state)
        self.run.optimizer.zero_grad()
        kept: weakref.WeakSet[Kept] = weakref.WeakSet()

        def keep(tensor: torch.Tensor) -> Kept:
            holder = Kept(tensor)
            kept.add(holder)
            return holder

        hooks = self.recomputation._hooks  # only the innermost hooks run, so these replace them
        hooks._pack = lambda tensor: keep_or_recomputed(type(hooks)._pack(hooks, tensor))  # type: ignore[method-assign]
        hooks._unpack = lambda it: type(hooks)._unpack(  # type: ignore[method-assign]
            hooks, it.tensor if isinstance(it, Kept) else it
        )

        def keep_or_recomputed(it: Any) -> Any:
            if isinstance(it, torch.Tensor):
                return keep(it)
            it[0].holders = [keep(each) for each in it[0].inputs]
            return it

        batch = next(self.run.batches(4096))
        with saved_tensors_hooks(keep, lambda holder: holder.tensor):
            hidden_T_D = hidden_states(self.base, batch, self.run.adapter)
        storages = {each.tensor.untyped_storage().data_ptr(): each.tensor.untyped_storage() for each in kept}
        kept_bytes = sum(storage.nbytes() for storage in storages.values())
        loss, _, _ = linear_cross_entropy(hidden_T_D[batch.logit_positions_N], self.base.head_V_D, batch.targets_N)
        assert self.base.switch.active is None  # as in training: the backward runs with the adapter switched off
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in self.parameters if parameter.grad is not None]
        return loss.item(), gradients, self.run.adapter.generator.get_state(), kept_bytes


@pytest.mark.parametrize(("mode", "count"), MODES)
def test_gradients_with_dropout_are_equal_to_the_bit_in_every_mode_and_nothing_is_kept(
    tiny: Path, examples: Path, tmp_path: Path, mode: Recompute, count: int
) -> None:
    bench = Bench(tiny, examples, tmp_path, "bfloat16")
    loss, gradients, state, _ = bench.step("nothing")
    again_loss, again, again_state, _ = bench.step(mode, count)
    assert again_loss == loss
    assert len(again) == len(bench.parameters)
    assert all(torch.equal(one, other) for one, other in zip(again, gradients, strict=True))
    assert torch.equal(again_state, state)
    assert bench.base.switch.active is None
    assert bench.recomputation._hooks._last is None  # no recomputed tensor after the backward


def test_each_mode_keeps_less_than_the_one_before(tiny: Path, examples: Path, tmp_path: Path) -> None:
    bench = Bench(tiny, examples, tmp_path, "bfloat16")
    kept = [bench.step(mode, count)[3] for mode, count in [("nothing", 0), *MODES]]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


def test_offloaded_inputs_of_layers_give_equal_gradients(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[torch.Size] = []
    host_copy = activation_checkpointing._host_copy
    monkeypatch.setattr(
        activation_checkpointing, "_host_copy", lambda hidden: (copied.append(hidden.shape), host_copy(hidden))[1]
    )
    bench = Bench(tiny, examples, tmp_path, "bfloat16")
    loss, gradients, state, _ = bench.step("everything")
    assert copied == []
    offloaded = bench.step("everything", offload=True)
    assert len(copied) == len(bench.recomputation.layers)
    assert offloaded[0] == loss
    assert all(torch.equal(one, other) for one, other in zip(offloaded[1], gradients, strict=True))
    assert torch.equal(offloaded[2], state)


def test_without_gradients_nothing_is_wrapped(tiny: Path, examples: Path, tmp_path: Path) -> None:
    bench = Bench(tiny, examples, tmp_path, "float32")
    batch, adapter = next(bench.run.batches(4096)), bench.run.adapter
    with torch.no_grad():
        plain = hidden_states(bench.base, batch, adapter)
        bench.recomputation.set("everything")
        assert torch.equal(hidden_states(bench.base, batch, adapter), plain)


def test_a_gated_product_is_recomputed_once_and_not_for_its_own_gradient(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.Size] = []

    def counted(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        made.append(gate.shape)
        return swiglu(gate, up)

    of_product = activation_checkpointing._product
    monkeypatch.setattr(activation_checkpointing, "_product", lambda _, hooks: of_product(counted, hooks))
    bench = Bench(tiny, examples, tmp_path, "float32")
    bench.step("elementwise")
    assert len(made) == 2 * len(bench.recomputation.layers)
