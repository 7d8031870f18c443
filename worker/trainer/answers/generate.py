"""Generation for a batch of prompts at once, with the frozen base model and an adapter.

Letters: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

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
    limit: int,
    **options: Any,
) -> list[list[int]]:
    """Return at most `limit` new tokens of each prompt without stop tokens; None as `adapter`: the base model.

    `options` as in `continue_prompts`.
    """
    pad, end = stop_ids[0] if stop_ids else 0, list(stop_ids) or None
    with _with_cache(base), base.switch.on(adapter):
        answers = continue_prompts(base.model, prompts, limit, base.device, pad, eos_token_id=end, **options)
    return [list(takewhile(lambda token: token not in stop_ids, answer)) for answer in answers]


def continue_prompts(
    model: Any, prompts: Sequence[list[int]], limit: int, device: torch.device | str, pad_token_id: int, **options: Any
) -> list[list[int]]:
    """Return the new tokens of each prompt, at most `limit`, padded after the end of an answer.

    `options` are those of transformers; without them the most likely tokens. The batch is padded on the left: each
    weight is then dequantized once per new token.
    """
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    batch = [[pad_token_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    output_B_T = model.generate(
        torch.tensor(batch, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=limit,
        pad_token_id=pad_token_id,
        **{"do_sample": False} | options,
    )
    answers: list[list[int]] = output_B_T[:, longest:].tolist()
    return answers


@contextmanager
def _with_cache(base: FrozenBase) -> Iterator[None]:
    """Use an attention with a key-value cache in the block, which ours of packed documents has not."""
    base.decoder.set_attn_implementation("sdpa" if base.decoder._supports_sdpa else "eager")
    try:
        yield
    finally:
        base.decoder.set_attn_implementation(attention.NAME)
