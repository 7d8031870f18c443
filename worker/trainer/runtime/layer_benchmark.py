"""The matrix products of a decoder layer, forward and backward, timed by themselves.

They are 59 % of a step on a CPU (docs/decisions/0018), and what one processor does otherwise than another: some have
instructions for bfloat16 and some imitate it, some have two threads a core and some one.

The code is that of training, the weights are made up, and no random generator is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch

from app.domain.planning.execution_plan import ExecutionPlan
from worker.trainer.adapter.lora import AdaptedLinear, Adapter, AdapterSwitch, LoraWeights
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.runtime.device import torch_dtype

Clock = Callable[[], float]
Shape = tuple[int, int]  # outputs, inputs

LARGEST_SIDE = 2048  # of a weight that is timed: a larger one takes longer, but is not faster in another way
VALUE = 0.01  # no zero, and no product of it so small that a processor takes long over it


class LayerBenchmark:
    """Each shape of a layer once, counted as often as the layer has it; with LoRA weights of `rank` beside the weight.

    The weight is in the type of the computation, as a quantised one is once it is dequantised and kept.
    """

    def __init__(self, shapes: Iterable[Shape], rank: int) -> None:
        self._counts = Counter(map(_clipped, shapes))
        self._rank = rank
        self._switch = AdapterSwitch()
        self._adapter = Adapter(0.0, torch.Generator(), {})
        self._layers: dict[tuple[Shape, torch.dtype], AdaptedLinear] = {}

    def seconds(self, plan: ExecutionPlan, clock: Clock) -> float:
        """Time one batch of the plan by `clock`. Leaves torch with the plan's number of threads."""
        torch.set_num_threads(plan.threads)
        return sum(count * self._time(shape, plan, clock) for shape, count in self._counts.items())

    def _time(self, shape: Shape, plan: ExecutionPlan, clock: Clock) -> float:
        (outputs, inputs), tokens, dtype = shape, plan.row_tokens, torch_dtype(plan.compute_dtype)
        layer, weights = self._layer(shape, dtype), self._adapter.layers[str(shape)]
        x_T_K = torch.full((tokens, inputs), VALUE, dtype=dtype, requires_grad=True)
        dy_T_D = torch.full((tokens, outputs), VALUE, dtype=dtype)
        began = clock()
        with self._switch.on(self._adapter):
            y_T_D = layer(x_T_K)
        torch.autograd.grad(y_T_D, (x_T_K, weights.A_R_K, weights.B_D_R), dy_T_D)
        return clock() - began

    def _layer(self, shape: Shape, dtype: torch.dtype) -> AdaptedLinear:
        if (shape, dtype) not in self._layers:
            outputs, inputs = shape
            rank = min(self._rank, *shape)
            A_R_K, B_D_R = (torch.full(each, VALUE) for each in ((rank, inputs), (outputs, rank)))
            weights = LoraWeights(torch.nn.Parameter(A_R_K), torch.nn.Parameter(B_D_R), 1.0)
            self._adapter.layers.setdefault(str(shape), weights)
            frozen = freeze(torch.full(shape, VALUE, dtype=dtype), None, dtype)
            self._layers[shape, dtype] = AdaptedLinear(str(shape), frozen, self._switch)
        return self._layers[shape, dtype]


def _clipped(shape: Shape) -> Shape:
    return min(shape[0], LARGEST_SIDE), min(shape[1], LARGEST_SIDE)
