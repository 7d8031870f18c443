"""DoRA (arXiv 2402.09353): LoRA trains the direction of each row of the weight, a magnitude vector its length.

    h = g * (W + scale * B A) x + bias,   g = m / ||W + scale * B A||, by rows

m is initialized with the lengths of the rows, so step 0 is the base model. The norm gets no gradient (section 4.3 of
the paper) and is computed again in every forward, which makes DoRA slower than LoRA. Dropout is applied as in PEFT: W
and B A get the same dropped x in the term that is added to W x.

Letters: T tokens, K inputs and D outputs of a layer, R the rank.
"""

from __future__ import annotations

import torch

from worker.trainer.adapter.lora import AdaptedLinear, LoraAdapter, LoraWeights, drop, frozen_linear
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.model.frozen_linear import FrozenLinear


def train_magnitudes(base: FrozenBase, adapter: LoraAdapter) -> None:
    """Add a magnitude to every target layer, and replace the layers in the model by DoRA layers."""
    for name, weights in adapter.layers.items():
        layer = base.layers[name]
        weights.magnitude_D = torch.nn.Parameter(row_lengths(layer.base, weights))
        base.layers[name] = DoraLinear(name, layer.base, base.switch)
        base.model.set_submodule(name, base.layers[name])


@torch.no_grad()
def row_lengths(base: FrozenLinear, weights: LoraWeights) -> torch.Tensor:
    """Return ||W + scale * B A|| of each of the D rows, float32."""
    W_D_K = base.weight_in(torch.float32)
    lengths_D: torch.Tensor = torch.addmm(W_D_K, weights.B_D_R, weights.A_R_K, alpha=weights.scale).norm(dim=1)
    return lengths_D


class DoraLinear(AdaptedLinear):
    """Takes the place of an `AdaptedLinear` in the model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_T_K, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        y_T_D = dropped_T_D = frozen_linear(x_T_K, self.base)
        if adapter := self._switch.active:
            weights = adapter.layers[self.name]
            assert weights.magnitude_D is not None
            g_D = weights.magnitude_D / row_lengths(self.base, weights)
            if adapter.dropout and torch.is_grad_enabled():
                x_T_K, _ = drop(x_T_K, adapter.dropout, adapter.generator)
                dropped_T_D = frozen_linear(x_T_K, self.base)
            bias_D = self.base.bias_in(dtype)
            wx_T_D = dropped_T_D if bias_D is None else dropped_T_D - bias_D
            bax_T_D = x_T_K @ weights.A_R_K.to(dtype).t() @ weights.B_D_R.to(dtype).t()
            # g - 1 in float32: g is near 1, so 16 bits would lose its digits.
            y_T_D = y_T_D + ((g_D - 1).to(dtype) * wx_T_D + (g_D * weights.scale).to(dtype) * bax_T_D)
        return y_T_D.view(*x.shape[:-1], y_T_D.shape[-1])
