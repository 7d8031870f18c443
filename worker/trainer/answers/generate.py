"""Greedy generation with the frozen base model and an adapter, for a batch of prompts at once.

Letters: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch

from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.model.attention import attention
from worker.trainer.model.base_model import FrozenBase


@torch.no_grad()
def generate(
    base: FrozenBase,
    prompts: Sequence[list[int]],
    adapter: LoraAdapter | None,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the new tokens of each prompt without stop tokens; None as `adapter` stands for the base model.

    The batch is padded on the left: each weight is then dequantized once per new token.
    """
    longest = max(map(len, prompts))
    pad_token = stop_ids[0] if stop_ids else 0
    padding = [[pad_token] * (longest - len(prompt)) for prompt in prompts]
    tokens_B_T = torch.tensor([pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask_B_T = torch.tensor([[0] * len(pad) + [1] * (longest - len(pad)) for pad in padding])
    with without_packing(base), base.switch.on(adapter):
        output_B_T = base.model.generate(
            tokens_B_T.to(base.device),
            attention_mask=mask_B_T.to(base.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=pad_token,
        )
    return [list(takewhile(lambda token: token not in stop_ids, row)) for row in output_B_T[:, longest:].tolist()]


@contextmanager
def without_packing(base: FrozenBase) -> Iterator[None]:
    """Use an attention with a key-value cache in the block, which ours of packed documents has not."""
    base.decoder.set_attn_implementation("sdpa" if base.decoder._supports_sdpa else "eager")
    try:
        yield
    finally:
        base.decoder.set_attn_implementation(attention.NAME)
