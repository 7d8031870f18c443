"""Benchmark of the matrix products of a decoder layer, forward and backward.

They take 59 % of a step on a CPU (docs/decisions/0018), and their speed differs most between processors: some have
instructions for bfloat16 and others emulate it, some run two threads per core and others one.

The benchmark runs the code of training with constant weights, and uses no random generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch

from app.domain.planning.execution_plan import ExecutionPlan
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter, LoraWeights
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.runtime.device import torch_dtype

Clock = Callable[[], float]
Shape = tuple[int, int]  # outputs, inputs

MAX_DIMENSION = 2048  # of a measured weight: larger ones take longer, but have the same fastest choice
VALUE = 0.01  # not zero, and large enough that no product of it is a denormal number, which processors compute slowly


class LayerBenchmark:
    """Measures each shape of a layer once and counts it as often as the layer has it; with LoRA weights of `rank`.

    The frozen weight has the compute dtype, as a quantised one has after it is dequantised and cached.
    """

    def __init__(self, shapes: Iterable[Shape], rank: int) -> None:
        self._counts = Counter((min(outputs, MAX_DIMENSION), min(inputs, MAX_DIMENSION)) for outputs, inputs in shapes)
        self._rank = rank
        self._switch = AdapterSwitch()
        self._adapter = LoraAdapter(0.0, torch.Generator(), {})
        self._layers: dict[tuple[Shape, torch.dtype], AdaptedLinear] = {}

    def seconds(self, plan: ExecutionPlan, clock: Clock) -> float:
        """Return the seconds of one batch of the plan by `clock`. Sets torch's threads to those of the plan."""
        torch.set_num_threads(plan.threads)
        return sum(count * self._time(shape, plan, clock) for shape, count in self._counts.items())

    def _time(self, shape: Shape, plan: ExecutionPlan, clock: Clock) -> float:
        (outputs, inputs), tokens, dtype = shape, plan.row_tokens, torch_dtype(plan.compute_dtype)
        layer, weights = self._layer(shape, dtype), self._adapter.layers[str(shape)]
        x_T_K = torch.full((tokens, inputs), VALUE, dtype=dtype, requires_grad=True)
        dy_T_D = torch.full((tokens, outputs), VALUE, dtype=dtype)
        started = clock()
        with self._switch.on(self._adapter):
            y_T_D = layer(x_T_K)
        torch.autograd.grad(y_T_D, (x_T_K, weights.A_R_K, weights.B_D_R), dy_T_D)
        return clock() - started

    def _layer(self, shape: Shape, dtype: torch.dtype) -> AdaptedLinear:
        if (shape, dtype) not in self._layers:
            outputs, inputs = shape
            rank = min(self._rank, *shape)
            A_R_K, B_D_R = torch.full((rank, inputs), VALUE), torch.full((outputs, rank), VALUE)
            weights = LoraWeights(torch.nn.Parameter(A_R_K), torch.nn.Parameter(B_D_R), 1.0)
            self._adapter.layers.setdefault(str(shape), weights)
            frozen = freeze(torch.full(shape, VALUE, dtype=dtype), None, dtype)
            self._layers[shape, dtype] = AdaptedLinear(str(shape), frozen, self._switch)
        return self._layers[shape, dtype]
