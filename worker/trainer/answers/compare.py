"""Answers of a base model without and with an adapter: `python -m worker.trainer.answers.compare BASE ADAPTER PROMPTS`.

It loads the adapter with transformers and PEFT, as a user would. PROMPTS is a JSONL file of {"messages": [...]}; for
each line it prints one JSON line {"prompt", "base", "tuned"}. Decoding is greedy, so only the adapter makes a
difference.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from app.domain.datasets.template_arguments import given_arguments
from app.system.artifact_directory import MANIFEST
from app.system.limited_rendering import limited_renderer
from worker.trainer.answers.generate import continue_prompts
from worker.trainer.runtime.device import choose_device
from worker.trainer.runtime.failures import is_out_of_memory

MAX_NEW_TOKENS = 64

Messages = list[dict[str, Any]]


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m worker.trainer.answers.compare BASE_DIR ADAPTER_DIR PROMPTS_FILE", file=sys.stderr)
        return 2
    _silence_libraries()
    base, adapter, prompts_file = map(Path, arguments)
    lines = prompts_file.read_text(encoding="utf-8").split("\n")
    for answers in sample(base, adapter, [json.loads(line)["messages"] for line in lines if line.strip()]):
        print(json.dumps(answers, ensure_ascii=False), flush=True)
    return 0


def sample(base: Path, adapter: Path, prompts: list[Messages]) -> list[dict[str, str]]:
    """Return {"prompt", "base", "tuned"} for each conversation; the prompt is its last message."""
    device = str(choose_device("auto"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    manifest = _manifest(adapter)
    model = PeftModel.from_pretrained(_load_base(base, device, manifest.get("quantization")), adapter).eval()
    renderer = limited_renderer(base).with_arguments(given_arguments(manifest))
    texts = [renderer.text(prompt, prompt=True) for prompt in prompts]
    tuned_answers = _answers(model, tokenizer, texts, device)
    with model.disable_adapter():
        base_answers = _answers(model, tokenizer, texts, device)
    answers = zip(prompts, base_answers, tuned_answers, strict=True)
    return [{"prompt": prompt[-1]["content"], "base": base, "tuned": tuned} for prompt, base, tuned in answers]


def _load_base(directory: Path, device: str, quantization: dict[str, Any] | None) -> Any:
    """Load the base in bfloat16, or quantized as in the training of the adapter."""
    return AutoModelForCausalLM.from_pretrained(
        directory,
        quantization_config=_bitsandbytes(quantization) if quantization else None,
        dtype=torch.bfloat16,
        device_map={"": device},
    )


def _bitsandbytes(quantization: dict[str, Any]) -> BitsAndBytesConfig:
    if quantization["bits"] == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["type"],
        bnb_4bit_use_double_quant=quantization["double_quant"],
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _manifest(adapter: Path) -> dict[str, Any]:
    """Return the adapter's manifest; empty without one."""
    path = adapter / MANIFEST
    return dict(json.loads(path.read_text())) if path.exists() else {}


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, prompts: list[str], device: str) -> list[str]:
    """Answer all prompts in one batch, which dequantizes each weight once per token; halve it if memory runs out."""
    try:
        return _answer_batch(model, tokenizer, prompts, device)
    except Exception as error:
        if len(prompts) == 1 or not is_out_of_memory(error):
            raise
    half = len(prompts) // 2  # outside of the handler: the exception would keep the tensors of the batch
    print(f"Out of memory with {len(prompts)} prompts per batch; continuing with {half}.", file=sys.stderr)
    return [answer for part in (prompts[:half], prompts[half:]) for answer in _answers(model, tokenizer, part, device)]


def _answer_batch(model: Any, tokenizer: Any, prompts: list[str], device: str) -> list[str]:
    tokens = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = continue_prompts(model, tokens, MAX_NEW_TOKENS, device, tokenizer.pad_token_id)
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _silence_libraries() -> None:
    """Hide warnings, such as bitsandbytes' advice to install a package with CVE-2026-4372."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
