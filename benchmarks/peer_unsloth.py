"""Unsloth on the shared workload, CUDA only; runs in an environment that has it and prints one JSON line per step.

    PYTHON benchmarks/peer_unsloth.py WORKLOAD_DIR '{"micro_batch": 8, "checkpointing": true}'

What it trains with is TRL's trainer, which it patches: rows, labels, their order and the LoRA start are given to it as
they are to TRL. `checkpointing` is its own kind, "unsloth". Written from its public source and documentation, never run
yet.
"""

from __future__ import annotations

import os

os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"

import unsloth  # noqa: F401, I001  it patches what comes next, so it comes first

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peer_trl import quantization, read, train
from torch.utils.data import SequentialSampler
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

LONGEST = 1024  # tokens of a row; ours are cut there for every side


class InOrder(SFTTrainer):
    """The rows as they come: under this name in every release of transformers that Unsloth runs with."""

    def _get_train_sampler(self, *_args, **_more):
        return SequentialSampler(self.train_dataset)


def make_trainer(directory: Path, work: dict, options: dict) -> SFTTrainer:
    checkpointing = "unsloth" if options["checkpointing"] else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=work["base"],
        use_exact_model_name=True,  # not its own copy of the model, quantized elsewhere
        max_seq_length=LONGEST,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        quantization_config=quantization(),
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=work["r"],
        lora_alpha=work["alpha"],
        lora_dropout=0.0,
        target_modules=work["target_modules"],
        bias="none",
        use_gradient_checkpointing=checkpointing,
    )
    config = SFTConfig(
        output_dir=str(directory / "unsloth-out"),
        max_steps=options.get("steps", work["steps"]),
        per_device_train_batch_size=options["micro_batch"],
        gradient_accumulation_steps=max(1, work["batch_size"] // options["micro_batch"]),
        gradient_checkpointing=options["checkpointing"],
        packing=False,
        padding_free=options.get("padding_free", False),
        max_length=LONGEST,
        bf16=True,
        optim="adamw_torch_fused",
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    rows = Dataset.from_list(read(directory / "rows.jsonl"))
    return InOrder(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]), make_trainer)
