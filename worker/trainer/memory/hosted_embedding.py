"""A frozen embedding in host memory: a batch reads one row for each token, and the whole is 2.1 GB for a 70B."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.model.base_model import FrozenBase


class HostedEmbedding:
    """Moves the embedding of a base to host memory and back. One that is trained, or also the head, stays.

    The model keeps a weight of the same shape on its device, whose numbers are one zero: transformers takes the device
    of a model from its first weight.
    """

    def __init__(self, base: FrozenBase) -> None:
        embedding = base.model.get_input_embeddings()
        can_move = type(embedding) is torch.nn.Embedding and embedding.weight is not base.head_V_D
        self._embedding = embedding if can_move else None
        self._weight_V_D: torch.Tensor | None = None  # while it is in host memory
        if self._embedding is not None:
            self._embedding.register_forward_hook(self._look_up)

    @property
    def size_bytes(self) -> int:
        return 0 if self._embedding is None else self._embedding.weight.nbytes

    def set(self, *, in_host_memory: bool) -> None:
        if self._embedding is None or in_host_memory == (self._weight_V_D is not None):
            return
        weight_V_D = self._embedding.weight
        if self._weight_V_D is None:
            self._weight_V_D = weight_V_D.data.to("cpu", copy=True)
            weight_V_D.data = weight_V_D.data.new_zeros(1).expand(weight_V_D.shape)
        else:
            weight_V_D.data, self._weight_V_D = self._weight_V_D.to(weight_V_D.device), None

    def _look_up(self, _module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor | None:
        if self._weight_V_D is None:
            return None
        return F.embedding(inputs[0].cpu(), self._weight_V_D).to(output.device)
