"""TRL's SFTTrainer on the shared workload; runs in the peer's own environment and prints one JSON line per step.

.venv-peer/bin/python benchmarks/peer_trl.py WORKLOAD_DIR '{"micro_batch": 8, "checkpointing": true, ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Tell(TrainerCallback):
    """Reports the real tokens of each step, independent of padding, packing and micro-batches."""

    def __init__(self) -> None:
        self.tokens = 0

    def count(self, _model, args, inputs):
        mask, tokens = inputs.get("attention_mask"), inputs["input_ids"] if "input_ids" in inputs else args[0]
        self.tokens += int(tokens.numel() if mask is None or mask.shape != tokens.shape else mask.sum())

    def on_step_end(self, args, state, control, **_):  # noqa: ARG002  (the callback's signature)
        say(kind="step", step=state.global_step, tokens=self.tokens)
        self.tokens = 0

    def on_log(self, args, state, control, logs=None, **_):  # noqa: ARG002
        if logs and "loss" in logs:
            say(kind="loss", step=state.global_step, loss=logs["loss"])


def train(directory: Path, options: dict, make_trainer: Callable[[Path, dict, dict], SFTTrainer]) -> None:
    """The part that both peers share: train from the same LoRA weights on the same rows, report every step."""
    work = json.loads((directory / "peer.json").read_text())
    torch.set_num_threads(work["threads"])
    trainer = make_trainer(directory, work, options)
    load_start(trainer.model, directory)
    tell = Tell()
    trainer.add_callback(tell)
    trainer.model.register_forward_pre_hook(tell.count, with_kwargs=True)
    on_cuda = work["device"] == "cuda"
    if on_cuda:  # ours begins to count at its probe, when everything is loaded
        torch.cuda.reset_peak_memory_stats()
    say(kind="ready")
    trainer.train()
    memory = torch.cuda.max_memory_allocated() if on_cuda else None
    if options.get("validate"):
        say(kind="validation", loss=validation_loss(trainer.model, directory / "validation-rows.jsonl"))
    say(kind="done", cuda_peak_bytes=memory)


def load_start(model, directory: Path) -> None:
    result = set_peft_model_state_dict(model, load_file(directory / "adapter-start.safetensors"))
    assert not result.unexpected_keys, result.unexpected_keys[:3]


def quantization() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def quantized_base(work: dict) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(work["base"], quantization_config=quantization(), dtype=torch.bfloat16)


def common_options(work: dict) -> dict:
    """The options of every trainer of TRL here: each step reports its loss, nothing is saved."""
    return {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": work["device"] == "cpu",
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def lora_config(work: dict) -> LoraConfig:
    return LoraConfig(
        r=work["r"], lora_alpha=work["alpha"], target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )


def make_trainer(directory: Path, work: dict, options: dict) -> SFTTrainer:
    micro_batch = options["micro_batch"]
    config = SFTConfig(
        output_dir=str(directory / "trl-out"),
        max_steps=options.get("steps", work["steps"]),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=max(1, work["batch_size"] // micro_batch),  # 16 at once are a larger step
        gradient_checkpointing=options["checkpointing"],
        packing=options.get("packing", False),
        padding_free=options.get("padding_free", False),
        max_length=_max_length(options),
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length" if options.get("length_groups") else "sequential",
        **common_options(work),
    )
    return SFTTrainer(
        model=quantized_base(work),
        args=config,
        train_dataset=Dataset.from_list(read(directory / "rows.jsonl")),
        processing_class=AutoTokenizer.from_pretrained(work["base"]),
        peft_config=lora_config(work),
    )


def _max_length(options: dict) -> int | None:
    """Padding-free rows are as long as they are: TRL takes no limit for them. Ours are cut at 1,024 for both sides."""
    if options.get("padding_free"):
        return None
    return 2048 if options.get("packing") else 1024


@torch.no_grad()
def validation_loss(model, path: Path) -> float:
    """The sum over labelled tokens, divided once, as in Tunery."""
    model.eval()
    total, count = 0.0, 0
    for row in read(path):
        ids = torch.tensor([row["input_ids"]], device=model.device)
        labels = torch.tensor(row["labels"][1:], device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def say(**record) -> None:
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]), make_trainer)
