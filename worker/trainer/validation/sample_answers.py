"""What the training did, for people: the same prompts answered by the base and by the adapter, greedily."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch

from app.domain.datasets.render import Renderer
from worker.trainer.adapter.lora import Adapter
from worker.trainer.model import attention
from worker.trainer.model.base_model import Base
from worker.trainer.state import Run

NEW_TOKENS = 64


def answers(base: Base, run: Run, renderer: Renderer, at_once: int | None = None) -> Iterator[tuple[str, str, str]]:
    """(prompt, the base's answer, the tuned model's answer) to each sample prompt, up to 64 tokens each.

    `at_once` prompts make one batch: None for all, 0 for no answers at all.
    """
    prompts = run.spec.sample_prompts
    if not prompts or at_once == 0:
        return
    tokens = [prompt_tokens(renderer, prompt) for prompt in prompts]
    size = at_once or len(tokens)
    batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]

    def generate(adapter: Adapter | None) -> list[str]:
        return [answer for batch in batches for answer in _generate(base, batch, adapter, renderer)]

    run.base_answers = run.base_answers or generate(None)
    yield from zip(prompts, run.base_answers, generate(run.adapter), strict=True)


def prompt_tokens(renderer: Renderer, prompt: str) -> list[int]:
    """As it is served: a user's message, or as it stands where there is no chat template. Raises TemplateRefused."""
    if renderer.template is None:
        return renderer.encode_plain(prompt)
    return renderer.encode(renderer.text([{"role": "user", "content": prompt}], prompt=True))


@torch.no_grad()
def _generate(base: Base, prompts: Sequence[list[int]], adapter: Adapter | None, renderer: Renderer) -> list[str]:
    """The prompts as one batch, padded on the left, so that the weights are dequantised once a token for all."""
    longest = max(map(len, prompts))
    ends = renderer.stop_ids
    pad_token = ends[0] if ends else 0
    padding = [[pad_token] * (longest - len(prompt)) for prompt in prompts]
    tokens_B_T = torch.tensor([pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask_B_T = torch.tensor([[0] * len(pad) + [1] * (longest - len(pad)) for pad in padding])
    base.model.set_attn_implementation("sdpa")  # ours knows documents end to end, not a cache
    try:
        with base.switch.on(adapter):
            output_B_T = base.model.generate(
                tokens_B_T.to(base.device),
                attention_mask=mask_B_T.to(base.device),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=ends or None,
                pad_token_id=pad_token,
            )
    finally:
        base.model.set_attn_implementation(attention.NAME)
    return [renderer.decode(_until(answer, ends)).strip() for answer in output_B_T[:, longest:].tolist()]


def _until(answer: list[int], ends: Sequence[int]) -> list[int]:
    return list(takewhile(lambda token: token not in ends, answer))
