"""A tiled MLP: the gated MLP of a recomputed layer runs over chunks of tokens, each recomputed in the backward.

Gate, up, their product and the gradients of the three are the largest tensors of a recomputed layer: 8 x 14,336 numbers
a token for an 8B, beside 13 x 4,096 of everything else. They then exist for one chunk. No token of an MLP needs
another, so losses and gradients equal those of the whole within the rounding of the sums over tokens (arXiv
2506.13996).

Dropout draws the masks of gate, up and down for all tokens of a chunk before those of the next, so the masks differ
from those of the whole. DoRA computes its norms of the weights for each chunk again. Experts are not tiled: each chunk
would dequantize the weights of all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from app.domain.planning.memory import GATED_MLP_LAYERS


def gated_mlps(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules of a decoder layer with a gate, an up and a down projection."""
    return [module for module in layer.modules() if all(hasattr(module, name) for name in GATED_MLP_LAYERS)]


def run_in_chunks(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    """Return `compute` of x (... x T x D), computed for `chunk_tokens` of the T tokens at once."""
    return torch.cat([compute(chunk) for chunk in torch.split(x, chunk_tokens, dim=-2)], dim=-2)
