"""The same answers without Tunery: transformers and PEFT, one prompt at a time, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from app.system.tokenizer_files import load_renderer
from tests.trainer import plain_peft


@torch.inference_mode()
def plain_answers(
    base: Path, adapter: Path, prompts: list[list[dict[str, Any]]], max_new_tokens: int
) -> list[tuple[str, str]]:
    """(answer of the base, answer with the adapter) of each prompt, greedy."""
    renderer = load_renderer(base)
    with plain_peft.quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).eval()

    def answer(prompt: list[dict[str, Any]]) -> str:
        tokens = renderer.encode(renderer.text(prompt, prompt=True))
        output = tuned.generate(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=renderer.stop_ids,
            pad_token_id=0,
        )
        return renderer.decode(output[0, len(tokens) :].tolist()).strip()

    answers = []
    for prompt in prompts:
        with tuned.disable_adapter():
            plain = answer(prompt)
        answers.append((plain, answer(prompt)))
    return answers
