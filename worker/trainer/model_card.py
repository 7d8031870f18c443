"""README.md of an adapter: the card that model hubs read, and what a person needs to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags: [lora, tunery]
---

# LoRA adapter for {name}

Trained with Tunery: {step} optimizer steps, {epoch:.2f} epochs, {tokens:,} tokens{losses}.

## Use

The base model is not in this directory; `{name}` is the name it was registered under, and where it was trained
`tunery models where {name}` prints its directory.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE_DIRECTORY), ADAPTER_DIRECTORY)
tokenizer = AutoTokenizer.from_pretrained(ADAPTER_DIRECTORY)  # with the chat template it was trained with
```

{serving}{hint}
## How it was trained

```json
{settings}
```

Every file's size and SHA-256, and those of the training data and the base model, stand in `MANIFEST.json`.
"""
SETTINGS = ("method", "lora", "quantization", "hyperparameters", "seed")
SERVING = """\
- vLLM: `vllm serve BASE_DIRECTORY --enable-lora --max-lora-rank {rank} --lora-modules tuned=ADAPTER_DIRECTORY`
- llama.cpp and Ollama: `convert_lora_to_gguf.py --base BASE_DIRECTORY ADAPTER_DIRECTORY`, then `ADAPTER file.gguf`
"""
MERGED_SERVING = """\
- vLLM, llama.cpp and Ollama read one rank and one scale of plain LoRA; this adapter has {more}. Merge it first:
  `python -m worker.trainer.merge BASE_DIRECTORY ADAPTER_DIRECTORY MODEL_DIRECTORY` makes an ordinary model of it.
"""
QUANTIZED_HINT = """\
- It was trained on the base in {width}: it fits best on the base loaded the same way, and very nearly as well
  on the 16-bit base.
"""


def model_card(about: Mapping[str, Any]) -> str:
    """The card for a checkpoint whose manifest says `about`."""
    name = about["base_model"]["name"]
    quantization = about["quantization"]
    return CARD.format(
        base=json.dumps(name),
        name=name,
        step=about["step"],
        epoch=about["epoch"],
        tokens=about["trained_tokens"],
        losses=_losses(about["metrics"]),
        serving=_serving(about["lora"]),
        hint=QUANTIZED_HINT.format(width=_width(quantization)) if quantization else "",
        settings=json.dumps({key: about[key] for key in SETTINGS if key in about}, indent=2),
    )


def _serving(lora: Mapping[str, Any]) -> str:
    special = {"use_dora": "DoRA", "rank_pattern": "rank patterns", "alpha_pattern": "alpha patterns",
               "modules_to_save": "whole modules"}  # fmt: skip
    more = [what for key, what in special.items() if lora.get(key)]
    if more:
        return MERGED_SERVING.format(more=", ".join(more))
    return SERVING.format(rank=max(8, lora["r"]))  # vLLM knows no smaller maximum than 8


def _width(quantization: Mapping[str, Any]) -> str:
    return f"{quantization['bits']}-bit {quantization['type'] or 'rows (LLM.int8)'}"


def _losses(metrics: Mapping[str, float | None]) -> str:
    named = {"training loss": metrics.get("train_loss"), "validation loss": metrics.get("full_valid_loss")}
    said = [f"{what} {value:.4f}" for what, value in named.items() if value is not None]
    return f" ({', '.join(said)})" if said else ""


MERGED_CARD = """\
---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [tunery]
---

# {name}, fine-tuned

A LoRA adapter trained with Tunery for {step} optimizer steps, merged into its base model `{name}`. An ordinary model:
nothing of PEFT is needed to use it.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY)
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)  # with the chat template it was trained with
```

The base model's licence holds for it, too.

## How it was trained

```json
{settings}
```

Every file's size and SHA-256, and those of the adapter, the training data and the base model, stand in `MANIFEST.json`.
"""


def merged_card(about: Mapping[str, Any]) -> str:
    """The card for a merged model whose manifest says `about`."""
    adapter = about["adapter"]
    settings = {key: adapter.get(key) for key in ("lora", "quantization", "hyperparameters", "seed")}
    return MERGED_CARD.format(
        base=json.dumps(about["base_model"]["name"]),
        name=about["base_model"]["name"],
        step=adapter["step"],
        settings=json.dumps(settings, indent=2),
    )
