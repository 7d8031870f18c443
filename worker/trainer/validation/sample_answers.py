"""Sample answers: greedy answers to the sample prompts, by the base model and by the tuned model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch

from app.domain.datasets.render import Renderer
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.model import attention
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.state import Run

MAX_NEW_TOKENS = 64


def sample_answers(
    base: FrozenBase, run: Run, renderer: Renderer, batch_size: int | None = None
) -> Iterator[tuple[str, str, str]]:
    """Yield (prompt, the base model's answer, the tuned model's answer) for each sample prompt.

    A batch has `batch_size` prompts: None stands for all of them, 0 for no answers at all.
    """
    prompts = run.spec.sample_prompts
    if not prompts or batch_size == 0:
        return
    tokens = [prompt_tokens(renderer, prompt) for prompt in prompts]
    size = batch_size or len(tokens)
    batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]

    def generate(adapter: LoraAdapter | None) -> list[str]:
        return [answer for batch in batches for answer in _generate(base, batch, adapter, renderer)]

    run.base_answers = run.base_answers or generate(None)
    yield from zip(prompts, run.base_answers, generate(run.adapter), strict=True)


def prompt_tokens(renderer: Renderer, prompt: str) -> list[int]:
    """Return the tokens of a prompt as one user message, or as plain text without a chat template.

    Raises TemplateRefused.
    """
    if renderer.template is None:
        return renderer.encode_plain(prompt)
    return renderer.encode(renderer.text([{"role": "user", "content": prompt}], prompt=True))


@torch.no_grad()
def _generate(
    base: FrozenBase, prompts: Sequence[list[int]], adapter: LoraAdapter | None, renderer: Renderer
) -> list[str]:
    """Answer the prompts as one batch, padded on the left: each weight is then dequantised once per new token."""
    longest = max(map(len, prompts))
    stop_ids = renderer.stop_ids
    pad_token = stop_ids[0] if stop_ids else 0
    padding = [[pad_token] * (longest - len(prompt)) for prompt in prompts]
    tokens_B_T = torch.tensor([pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask_B_T = torch.tensor([[0] * len(pad) + [1] * (longest - len(pad)) for pad in padding])
    base.model.set_attn_implementation("sdpa")  # our attention of packed documents has no key-value cache
    try:
        with base.switch.on(adapter):
            output_B_T = base.model.generate(
                tokens_B_T.to(base.device),
                attention_mask=mask_B_T.to(base.device),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                eos_token_id=stop_ids or None,
                pad_token_id=pad_token,
            )
    finally:
        base.model.set_attn_implementation(attention.NAME)
    answers = (takewhile(lambda token: token not in stop_ids, answer) for answer in output_B_T[:, longest:].tolist())
    return [renderer.decode(list(answer)).strip() for answer in answers]
