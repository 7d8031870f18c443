"""A tiled MLP: losses and gradients are those of the whole, and what is largest exists for one chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from app.domain.datasets.documents import Document
from tests.tiny import make_tiny_base
from tests.trainer.memory.test_activation_checkpointing import Bench
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.memory.activation_checkpointing import Recomputation, gated_mlps
from worker.trainer.model.base_model import hidden_states
from worker.trainer.objective.losses import linear_cross_entropy

CHUNK_TOKENS = 16


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The peak of the storages that operations allocate, without those that were there before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in args if isinstance(each, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("use_dora", [False, True])
def test_gradients_equal_those_of_the_whole(tiny: Path, examples: Path, tmp_path: Path, use_dora: bool) -> None:
    bench = Bench(tiny, examples, tmp_path, "float32", dropout=0.0, use_dora=use_dora)
    loss, gradients, *_ = bench.step("everything")
    tiled_loss, tiled, *_ = bench.step("everything", mlp_chunk_tokens=CHUNK_TOKENS)
    assert tiled_loss == pytest.approx(loss, rel=1e-6)
    assert len(tiled) == len(bench.parameters)
    largest = max(float(each.abs().max()) for each in gradients)
    for one, other in zip(tiled, gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * largest
    plain = bench.step("nothing", mlp_chunk_tokens=CHUNK_TOKENS)  # layers that are not recomputed have nothing to gain
    assert all(torch.equal(one, other) for one, other in zip(plain[1], gradients, strict=True))


def test_each_chunk_has_the_masks_of_its_forward_in_the_backward(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against chunks that are kept: the masks are drawn in the same order, and none is drawn again."""
    bench = Bench(tiny, examples, tmp_path, "float32")
    loss, gradients, state, _ = bench.step("everything", mlp_chunk_tokens=CHUNK_TOKENS)
    recomputed = Recomputation._recomputed

    def kept(self: Recomputation, compute: Any, hidden: torch.Tensor, *, offload: bool) -> torch.Tensor:
        is_layer = hidden.shape[-2] > CHUNK_TOKENS
        output: torch.Tensor = recomputed(self, compute, hidden, offload=offload) if is_layer else compute(hidden)
        return output

    monkeypatch.setattr(Recomputation, "_recomputed", kept)
    expected = bench.step("everything", mlp_chunk_tokens=CHUNK_TOKENS)
    assert loss == expected[0]
    assert torch.equal(state, expected[2])
    for one, other in zip(gradients, expected[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    assert loss != bench.step("everything")[0]  # the whole draws other masks


def test_the_peak_of_a_batch_grows_with_its_tokens_by_less_than_the_plan_says(examples: Path, tmp_path: Path) -> None:
    """Numbers a token, of inner width F = 32 D: 5.3 F for the whole MLP (the plan: 8 F), 12 D in chunks (14 D)."""
    bench = Bench(make_tiny_base(tmp_path / "wide", intermediate_size=2048), examples, tmp_path, "float32", dropout=0.0)
    grown: dict[int, float] = {}
    for chunk_tokens in (0, CHUNK_TOKENS):
        bench.recomputation.set("everything", mlp_chunk_tokens=chunk_tokens)
        peaks = [_peak_bytes(bench, tokens) for tokens in (128, 448)]
        grown[chunk_tokens] = (peaks[1] - peaks[0]) / 320 / 4
    assert 4 * 2048 < grown[0] < 8 * 2048
    assert grown[CHUNK_TOKENS] < 14 * 64


def _peak_bytes(bench: Bench, tokens: int) -> int:
    dataset = TokenizedDataset()
    dataset.add(1, [Document(1, [3] * tokens, [False] * (tokens - 8) + [True] * 8)])
    batch = next(pack_batches(dataset, dataset.documents(0), row_tokens=tokens))
    with PeakBytes() as measured:
        hidden_N_D = hidden_states(bench.base, batch, bench.run.adapter)[batch.logit_positions_N]
        linear_cross_entropy(hidden_N_D, bench.base.head_V_D, batch.targets_N)[0].backward()
    return measured.peak


def test_a_pass_without_gradients_is_tiled_too(tiny: Path, examples: Path, tmp_path: Path) -> None:
    bench = Bench(tiny, examples, tmp_path, "float32")
    batch, lengths = next(bench.run.batches(4096)), []
    with torch.no_grad():
        whole = hidden_states(bench.base, batch, bench.run.adapter)
        for layer in bench.recomputation.layers:
            (mlp,) = gated_mlps(layer)
            mlp.gate_proj.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[-2]))
        bench.recomputation.set("everything", mlp_chunk_tokens=CHUNK_TOKENS)
        tiled = hidden_states(bench.base, batch, bench.run.adapter)
    assert max(lengths) == CHUNK_TOKENS
    assert torch.allclose(tiled, whole, rtol=1e-5, atol=1e-6)
