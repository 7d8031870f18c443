"""Document attention: causal attention within each document of a packed batch, never across documents.

It is registered with transformers under its own name, so no model code changes and no mask is built: a 2-D mask would
silently disable packing, a 4-D mask costs T x T. The kernels:

    variable length   CUDA, sm80 and newer, 16 bits, head sizes that flash attention supports: one call for the batch;
                      with sinks from its log-sum-exp (sink_attention.py)
    blocks            CPU, 16 bits, short documents: blocks of documents of similar length (block_attention.py)
    by document       otherwise: torch's causal kernel, called once for each document. On CUDA the key and value heads
                      are expanded, because only flash attention shares them between query heads: without it torch
                      would use its math kernel, which keeps S x S numbers for every head
    explicit          capped scores, which no kernel has, sinks and, on CUDA, documents longer than a sliding window
                      without flash attention; for the last torch would need a mask of S x S numbers

attention_check.py compares the kernel in use with a float32 softmax before a job trains.

Letters: H query heads, G key/value heads, T tokens of the batch, S tokens of one document, D per head of queries and
keys, E per head of values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.domain.jobs.states import Reason
from app.domain.planning.memory import FLASH_HEAD_SIZE_STEP, MAX_BLOCK_ATTENTION_TOKENS, MAX_FLASH_HEAD_SIZE
from worker.trainer.kernels.cpu.block_attention import block_attention
from worker.trainer.model.attention.explicit_attention import ScoreOptions, explicit_attention
from worker.trainer.model.attention.sink_attention import FlashAttention, attention_with_sinks
from worker.trainer.model.patches import DOCUMENTS
from worker.trainer.runtime.failures import Failure

NAME = "tunery_documents"
# Options that some models pass and this attention does not implement. Each changes the result, so it is refused.
UNSUPPORTED = ("position_bias", "head_mask")
# Flash attention has no backward for these head sizes on these GPUs (torch: transformers/cuda/sdp_utils.cpp).
NO_FLASH_BACKWARD_SIZES = range(193, 225)
NO_FLASH_BACKWARD_CAPABILITIES = ((8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class Heads:
    """The input of attention: documents of `lengths` tokens end to end; a token attends to at most `window` tokens."""

    query_1_H_T_D: torch.Tensor  # noqa: N815
    key_1_G_T_D: torch.Tensor  # noqa: N815
    value_1_G_T_E: torch.Tensor  # noqa: N815
    lengths: tuple[int, ...]
    scaling: float | None
    window: int | None
    score_cap: float | None = None  # Gemma 2
    sinks_H: torch.Tensor | None = None  # noqa: N815  gpt-oss

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query_1_H_T_D, self.key_1_G_T_D, self.value_1_G_T_E

    @property
    def dtype(self) -> torch.dtype:
        return self.query_1_H_T_D.dtype

    @property
    def device(self) -> torch.device:
        return self.query_1_H_T_D.device

    @property
    def scale(self) -> float:
        return self.query_1_H_T_D.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    @property
    def has_equal_sizes(self) -> bool:
        """Return whether the heads of values have the size of those of queries."""
        return self.query_1_H_T_D.shape[-1] == self.value_1_G_T_E.shape[-1]

    def expanded(self) -> Heads:
        """Return the same input with a key and a value head for every query head."""
        copies = self.query_1_H_T_D.shape[1] // self.key_1_G_T_D.shape[1]
        key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in (self.key_1_G_T_D, self.value_1_G_T_E))
        return replace(self, key_1_G_T_D=key, value_1_G_T_E=value)


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention, and its name in messages."""

    name: str
    compute: Callable[[Heads], torch.Tensor]  # returns T x H x E


def document_attention(
    module: torch.nn.Module,
    query_1_H_T_D: torch.Tensor,
    key_1_G_T_D: torch.Tensor,
    value_1_G_T_E: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: tuple[int, ...] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within documents of `document_lengths` tokens end to end. Returns (1, T, H, E).

    Raises Failure for a model with another kind of attention, whose documents would silently attend to each other.
    """
    if document_lengths is None and position_ids is not None:  # all that some layers pass on (StableLM, Nemotron)
        starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
        document_lengths = tuple(end - start for start, end in pairwise([*starts, position_ids.shape[1]]))
    unsupported = [name for name in UNSUPPORTED if rest.get(name) is not None]
    if unsupported or document_lengths is None or attention_mask is not None or rest.get("is_causal") is False:
        needs = ", ".join(unsupported) or "its own mask"
        raise Failure(
            Reason.MODEL_UNAVAILABLE,
            f"The attention of this base model ({type(module).__name__}) needs {needs}, which Tunery does not support "
            "yet. Choose another base model.",
            "model",
        )
    heads = Heads(query_1_H_T_D, key_1_G_T_D, value_1_G_T_E, document_lengths, scaling, sliding_window, softcap, s_aux)
    return choose_kernel(heads).compute(heads).unsqueeze(0), None


@lru_cache(maxsize=8)
def document_starts(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the start of each document and the end. Cached: every layer needs it, but it is copied only once."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def choose_kernel(heads: Heads) -> Kernel:
    """Return the fastest kernel that supports this input."""
    is_banded = heads.window is not None and heads.window < max(heads.lengths)
    on_cuda = heads.device.type == "cuda"
    has_flash = on_cuda and _has_flash(heads, _capability(heads.device))
    if heads.score_cap is not None or (not has_flash and (heads.sinks_H is not None or (on_cuda and is_banded))):
        return Kernel("a softmax in float32, one document at a time", _explicit)
    if heads.sinks_H is not None:
        return Kernel("flash attention, all documents at once, with sinks", _variable_length_with_sinks)
    if has_flash:
        return Kernel("torch.nn.attention.varlen, all documents at once", _variable_length)
    if on_cuda:
        return Kernel("scaled_dot_product_attention, one document at a time with expanded heads", _expanded_by_document)
    is_short = max(heads.lengths) <= MAX_BLOCK_ATTENTION_TOKENS
    if heads.dtype != torch.float32 and is_short and not is_banded and heads.has_equal_sizes:
        return Kernel("blocks of documents of similar length", _block_kernel)
    return Kernel("scaled_dot_product_attention, one document at a time", _document_by_document)


def _has_flash(heads: Heads, capability: tuple[int, int]) -> bool:
    query_size = heads.query_1_H_T_D.shape[-1]
    if heads.dtype == torch.float32 or capability < (8, 0) or not heads.has_equal_sizes:
        return False
    if query_size in NO_FLASH_BACKWARD_SIZES and capability in NO_FLASH_BACKWARD_CAPABILITIES:
        return False
    return query_size <= MAX_FLASH_HEAD_SIZE and query_size % FLASH_HEAD_SIZE_STEP == 0


@lru_cache(maxsize=8)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _block_kernel(heads: Heads) -> torch.Tensor:
    query_T_H_D, key_T_G_D, value_T_G_D = (tensor[0].transpose(0, 1) for tensor in heads.tensors)
    return block_attention(query_T_H_D, key_T_G_D, value_T_G_D, heads.lengths, heads.scale)


def _expanded_by_document(heads: Heads) -> torch.Tensor:
    return _document_by_document(heads.expanded())


def _explicit(heads: Heads) -> torch.Tensor:
    """One document at a time, some queries at a time (explicit_attention.py)."""
    options = ScoreOptions(heads.scale, heads.window, heads.score_cap, heads.sinks_H)
    documents = zip(*(torch.split(tensor[0], list(heads.lengths), dim=1) for tensor in heads.tensors), strict=True)
    outs_H_S_D = [explicit_attention(query, key, value, options) for query, key, value in documents]
    return torch.cat([out.transpose(0, 1) for out in outs_H_S_D])


def _document_by_document(heads: Heads) -> torch.Tensor:
    """On a CPU in float32: more exact, and forward and backward take 1.4 ms instead of 2.9 ms at 100 tokens."""
    dtype = torch.float32 if heads.device.type == "cpu" else heads.dtype
    parts = (torch.split(tensor.to(dtype), list(heads.lengths), dim=2) for tensor in heads.tensors)
    outs_S_H_E = []
    for length, query, key, value in zip(heads.lengths, *parts, strict=True):
        mask_S_S = None
        if heads.window is not None and length > heads.window:
            mask_S_S = torch.ones(length, length, dtype=torch.bool, device=heads.device).tril_().triu_(1 - heads.window)
        out_1_H_S_E = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask_S_S,
            is_causal=mask_S_S is None,
            scale=heads.scaling,
            enable_gqa=heads.query_1_H_T_D.shape[1] != heads.key_1_G_T_D.shape[1],
        )
        outs_S_H_E.append(out_1_H_S_E[0].transpose(0, 1))
    return torch.cat(outs_S_H_E).to(heads.dtype)


def _variable_length(heads: Heads) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # needs a CUDA build of torch

    starts, longest = document_starts(heads.lengths, heads.device), max(heads.lengths)
    query_T_H_D, key_T_G_D, value_T_G_D = (tensor[0].transpose(0, 1).contiguous() for tensor in heads.tensors)
    out_T_H_D = varlen_attn(
        query_T_H_D,
        key_T_G_D,
        value_T_G_D,
        starts,
        starts,
        longest,
        longest,
        scale=heads.scaling,
        window_size=(-1 if heads.window is None else heads.window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(out_T_H_D, torch.Tensor)
    return out_T_H_D


def _variable_length_with_sinks(heads: Heads) -> torch.Tensor:
    assert heads.sinks_H is not None
    kernel = FlashAttention(
        document_starts(heads.lengths, heads.device), max(heads.lengths), heads.scaling, heads.window
    )
    query_T_H_D, key_T_G_D, value_T_G_D = (tensor[0].transpose(0, 1).contiguous() for tensor in heads.tensors)
    return attention_with_sinks(query_T_H_D, key_T_G_D, value_T_G_D, heads.sinks_H, kernel)


DOCUMENTS.put(f"attention: {NAME}", ALL_ATTENTION_FUNCTIONS, NAME, document_attention)
