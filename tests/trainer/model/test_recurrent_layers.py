"""Layers that carry state, over packed documents. flash-linear-attention needs a GPU: a stand-in takes its place."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.datasets.documents import Document
from tests.trainer.helpers import CPU_KERNELS
from tests.trainer.model.bases import make_base
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.model import base_model, recurrent_layers
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, hidden_states, load_base
from worker.trainer.model.recurrent_layers import CONVOLUTION, DELTA_RULE, PackedDeltaRule, fused_rules

HYBRIDS = ("Qwen3.5 text", "LFM2")
CHUNK = 64  # of the delta rule
LENGTHS = (5, 2, 70, 1)  # shorter than the convolution's kernel, longer than a chunk of the delta rule


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    places: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in places:
            places[name] = make_base(name, tmp_path_factory.mktemp("hybrid") / "base")
        return places[name]

    return get


def load(directory: Path) -> FrozenBase:
    return load_base("hybrid", directory, None, torch.float32, CPU_KERNELS)


def packed(*lengths: int) -> PackedBatch:
    dataset = TokenizedDataset()
    documents = [
        Document(1, [1 + (7 * number + place) % 250 for place in range(length)], [True] * length)
        for number, length in enumerate(lengths)
    ]
    dataset.add(1, documents)
    return next(pack_batches(dataset, dataset.documents(0), row_tokens=sum(lengths)))


@torch.no_grad()
def alone(base: FrozenBase, batch: PackedBatch) -> torch.Tensor:
    base.packs_documents = False
    try:
        return hidden_states(base, batch)
    finally:
        base.packs_documents = True


@pytest.mark.parametrize("name", HYBRIDS)
@torch.no_grad()
def test_packed_documents_have_the_hidden_states_of_documents_alone(
    directory: Callable[[str], Path], name: str
) -> None:
    base = load(directory(name))
    check_base(base)
    assert base.packs_documents
    batch = packed(*LENGTHS)
    torch.testing.assert_close(hidden_states(base, batch), alone(base, batch), rtol=1e-4, atol=1e-5)


def test_a_cpu_does_not_call_the_package_causal_conv1d(
    directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package, transformers' function calls it on every device, and it computes on CUDA alone."""
    module = sys.modules[type(load(directory("LFM2")).model).__module__]
    plain = getattr(module, CONVOLUTION)._reference

    @functools.wraps(plain)
    def with_the_package(*_: object, **__: object) -> None:
        raise RuntimeError("Expected x.is_cuda() to be true")

    monkeypatch.setattr(module, CONVOLUTION, with_the_package)
    base = load(directory("LFM2"))
    check_base(base)
    assert base.packs_documents


def test_without_the_functions_of_transformers_each_document_runs_alone(
    directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a version of transformers that computes these layers in another place."""
    model = load(directory("LFM2")).model
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(module, CONVOLUTION, getattr(module, CONVOLUTION)._original)
    monkeypatch.setattr(base_model, "pack_recurrent_layers", lambda model: None)
    base = load(directory("LFM2"))
    check_base(base)
    assert not base.packs_documents


class FlashLinearAttention:
    """transformers' function as it is with the package: it takes the boundaries of documents."""

    def __init__(self, reference: Callable[..., Any], computes: str) -> None:
        self.__wrapped__ = reference
        self.computes = computes
        self.boundaries: list[torch.Tensor] = []

    def __call__(
        self, query: torch.Tensor, *others: torch.Tensor, cu_seqlens: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, None]:
        assert self.computes != "nothing", "this GPU is not supported"
        assert cu_seqlens is not None
        self.boundaries.append(cu_seqlens)
        if self.computes == "one document":
            return self.__wrapped__(query, *others, **options)[0], None
        ends = cu_seqlens[1:].tolist()
        if self.computes == "chunks" and ends[-1] > CHUNK:  # the state is emptied between chunks only
            ends = sorted({end // CHUNK * CHUNK for end in ends[:-1] if end >= CHUNK} | {ends[-1]})
        rule = PackedDeltaRule(self.__wrapped__)
        rule.is_fused = False
        return rule(query, *others, document_lengths=tuple(torch.tensor([0, *ends]).diff().tolist()), **options)


class TestFlashLinearAttention:
    @pytest.fixture
    def install(
        self, directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[str], tuple[FrozenBase, FlashLinearAttention]]:
        def install(computes: str) -> tuple[FrozenBase, FlashLinearAttention]:
            base = load(directory("Qwen3.5 text"))
            module = sys.modules[type(base.model).__module__]
            package = FlashLinearAttention(getattr(module, DELTA_RULE)._reference, computes)
            rule = PackedDeltaRule(package)
            rule.is_fused = True
            monkeypatch.setattr(module, DELTA_RULE, rule)
            monkeypatch.setattr(recurrent_layers, "supports_fused", lambda query: query.dtype == torch.bfloat16)
            return load_base("hybrid", directory("Qwen3.5 text"), None, torch.bfloat16, CPU_KERNELS), package

        return install

    def test_computes_all_documents_of_a_packed_batch_in_one_call(
        self, install: Callable[[str], tuple[FrozenBase, FlashLinearAttention]]
    ) -> None:
        base, package = install("documents")
        check_base(base)
        assert (base.packs_documents, base.recurrence_problem, len(fused_rules(base.model))) == (True, "", 1)
        package.boundaries.clear()
        with torch.no_grad():
            hidden_states(base, packed(*LENGTHS))
        (boundaries,) = package.boundaries  # one layer of the two
        assert boundaries.dtype == torch.int32
        assert boundaries.tolist() == [0, 5, 7, 77, 78]

    @pytest.mark.parametrize(
        ("computes", "problem"),
        [("one document", "another's loss"), ("chunks", "another's loss"), ("nothing", "not supported")],
    )
    def test_a_package_that_fails_the_check_is_switched_off(
        self, install: Callable[[str], tuple[FrozenBase, FlashLinearAttention]], computes: str, problem: str
    ) -> None:
        base, package = install(computes)
        check_base(base)
        assert problem in base.recurrence_problem
        assert (base.packs_documents, fused_rules(base.model)) == (True, [])
        package.boundaries.clear()
        with torch.no_grad():
            hidden_states(base, packed(*LENGTHS))
        assert package.boundaries == []
