"""Counts the activations that decoder layers keep for their backward, on the loaded model.

The memory plan's formula describes a Llama layer: two norms, a gated SiLU product. Other architectures have norms of
queries and keys, four norms, other activations or one fused projection, and keep up to 1.75 times as much. A forward of
a few tokens counts the tensors that are still alive after it, once with all activations kept and once with element-wise
recomputation. Two lengths give the bytes per token: weights and masks do not grow with the tokens.

Attention is not computed: a stand-in keeps queries, keys, values and output, as flash attention does, because kernels
of other devices keep other tensors. The plan's formula adds what the kernel of its device keeps.

Letters as in attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.domain.datasets.documents import Document
from app.domain.jobs.spec import LoraSpec
from app.domain.planning.execution_plan import Recompute
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.data.batch import TokenizedDataset, pack_batches
from worker.trainer.memory.activation_checkpointing import Recomputation, layer_stack
from worker.trainer.model.architecture import carries_state
from worker.trainer.model.attention import attention
from worker.trainer.model.base_model import FrozenBase, hidden_states
from worker.trainer.model.patches import Patches

LENGTHS = (8, 24)
LENGTHS_WITH_STATE = (64, 192)  # the gated delta rule of transformers pads each document to a multiple of 64
weak_reference: Any = StorageWeakRef  # untyped


def count_without_adapter(base: FrozenBase, recomputation: Recomputation) -> dict[Recompute, float]:
    """Return the bytes per token that a decoder layer keeps besides attention and the adapter, by mode.

    An adapter of rank 1 on every layer that can have one keeps the inputs of these layers, as every adapter does.
    """
    layers, stack = base.adaptable_layers, layer_stack(base.model)
    targets = sorted({name.rpartition(".")[2] for name in layers})
    adapter = make_adapter(LoraSpec(r=1, alpha=1, target_modules=tuple(targets)), 0, layers, base.kernels)
    counts = count_activations(base, adapter, recomputation)
    adapter_bytes = base.compute_dtype.itemsize * len(layers) / max(1, len(stack))
    return {mode: count - adapter_bytes for mode, count in counts.items()}


def count_activations(
    base: FrozenBase, adapter: LoraAdapter | None, recomputation: Recomputation
) -> dict[Recompute, float]:
    """Return the bytes per token that a decoder layer keeps besides attention, averaged over the layers, by mode.

    Only "nothing" for a model whose layers cannot be recomputed, empty for one whose layers are not known. Random
    states stay unchanged.
    """
    counts: dict[Recompute, float] = {}
    state = adapter.generator.get_state() if adapter else None
    layers = layer_stack(base.model)
    modes: tuple[Recompute, ...] = ("nothing", "elementwise") if recomputation.layers else ("nothing",)
    lengths = LENGTHS_WITH_STATE if carries_state(base.text_config) else LENGTHS
    for mode in modes if layers else ():
        recomputation.set(mode)
        short, long = (_kept_bytes(base, adapter, layers, tokens) for tokens in lengths)
        counts[mode] = (long - short) / (lengths[1] - lengths[0]) / len(layers)
    recomputation.set("nothing")
    if adapter and state is not None:
        adapter.generator.set_state(state)
    return counts


@torch.enable_grad()
def _kept_bytes(base: FrozenBase, adapter: LoraAdapter | None, layers: Sequence[torch.nn.Module], tokens: int) -> int:
    """Return the bytes that the layers keep for one document, without those of attention."""
    dataset = TokenizedDataset()
    dataset.add(1, [Document(1, list(range(1, tokens + 1)), [False] + [True] * (tokens - 1))])
    batch = next(pack_batches(dataset, dataset.documents(0), row_tokens=tokens)).to(base.device)
    alive = _AliveStorages()
    hooks = [layer.register_forward_pre_hook(alive.start) for layer in layers]
    hooks += [layer.register_forward_hook(alive.stop) for layer in layers]
    embedding = base.model.get_input_embeddings()
    hooks.append(embedding.register_forward_hook(lambda _module, _inputs, output: output.detach().requires_grad_()))
    try:
        with _attention_stand_in() as attention_bytes, alive:
            hidden_T_D = hidden_states(base, batch, adapter)
            kept_bytes = alive.size_bytes() - sum(attention_bytes)
        del hidden_T_D
    finally:
        for hook in hooks:
            hook.remove()
    return kept_bytes


class _AliveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the storages that operations allocate between `start` and `stop`, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[Any, int]] = {}  # weak reference and bytes, by address
        self._is_counting = False

    def start(self, *_: Any) -> None:
        self._is_counting = True

    def stop(self, *_: Any) -> None:
        self._is_counting = False

    def size_bytes(self) -> int:
        return sum(size for storage, size in self._storages.values() if not storage.expired())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._is_counting:
            given = {each.untyped_storage()._cdata for each in args if isinstance(each, torch.Tensor)}
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                    storage = tensor.untyped_storage()
                    self._storages[storage._cdata] = weak_reference(storage), storage.nbytes()
        return result


@contextmanager
def _attention_stand_in() -> Iterator[list[int]]:
    """Replace attention in the block; yield the list of the bytes that each call keeps."""
    kept: list[int] = []

    def stand_in(
        _module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **_: Any
    ) -> tuple[torch.Tensor, None]:
        out: torch.Tensor = _KeepsInputs.apply(query, key, value)  # type: ignore[no-untyped-call]
        kept.append(sum(tensor.numel() * tensor.element_size() for tensor in (query, key, value, out)))
        return out, None

    with Patches() as patches:
        patches.put("counted attention", ALL_ATTENTION_FUNCTIONS, attention.NAME, stand_in)
        yield kept


class _KeepsInputs(torch.autograd.Function):
    """Keeps contiguous queries, keys and values, and its output (1 x T x H x E), which is zero. Has no backward."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        copies = [
            tensor[0].transpose(0, 1).clone(memory_format=torch.contiguous_format) for tensor in (query, key, value)
        ]
        out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(*copies, out)
        return out
