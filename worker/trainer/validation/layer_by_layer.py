"""Several forwards of one base model, decoder layer by decoder layer: each layer computes all of them before the next.

So what a layer needs, such as weights from a file, is read once. The decoder itself runs twice for each forward, with
layers that compute nothing: first it makes the inputs of all layers, and at the end its result of their last output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch

from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.data.batch import PackedBatch
from worker.trainer.memory.activation_checkpointing import layer_stack
from worker.trainer.model.base_model import FrozenBase, hidden_states, in_dtype
from worker.trainer.model.patches import Patches


class Forward(NamedTuple):
    batch: PackedBatch
    adapter: LoraAdapter | None
    dtype: torch.dtype


@torch.no_grad()
def hidden_states_of(
    base: FrozenBase,
    forwards: Sequence[Forward],
    around_layer: Callable[[torch.nn.Module], AbstractContextManager[None]],
) -> list[torch.Tensor]:
    """Return the last hidden states (T x D) of each forward, as `hidden_states` computes them.

    All forwards of a layer run within `around_layer(layer)`.
    """
    layers = layer_stack(base.model)
    runs = [_Run(base, layers, forward) for forward in forwards]
    for index, layer in enumerate(layers):
        with around_layer(layer):
            for dtype, of_dtype in groupby(runs, lambda run: run.forward.dtype):
                with in_dtype(base, dtype, layer):
                    for run in of_dtype:
                        run.compute(index)
    return [run.result() for run in runs]


class _Run:
    """One forward between two layers."""

    def __init__(self, base: FrozenBase, layers: Sequence[torch.nn.Module], forward: Forward) -> None:
        self.forward = forward
        self._base, self._layers = base, layers
        # By part of the batch: a base whose documents run alone calls all layers for each of them.
        self._hidden: list[torch.Tensor] = []
        self._inputs: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []  # of each layer, besides hidden states
        self._decode(self._record)

    def compute(self, index: int) -> None:
        with self._base.switch.on(self.forward.adapter):
            for part, inputs in enumerate(self._inputs):
                others, options = inputs[index]
                self._hidden[part] = self._layers[index](self._hidden[part], *others, **options)

    def result(self) -> torch.Tensor:
        ends = iter(self._hidden)
        last = len(self._layers) - 1
        return self._decode(lambda index, hidden, *_, **__: next(ends) if index == last else hidden)

    def _record(self, index: int, hidden: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        if index == 0:
            self._hidden.append(hidden)
            self._inputs.append([])
        self._inputs[-1].append((others, options))
        return hidden

    def _decode(self, layer: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Run the decoder with `layer(index, hidden, ...)` in the place of each layer."""
        batch, adapter, dtype = self.forward
        with Patches() as patches, in_dtype(self._base, dtype):
            for index, module in enumerate(self._layers):
                patches.put_attribute(module, "forward", partial(layer, index), f"layers.{index}")
            return hidden_states(self._base, batch, adapter, dtype=dtype)
