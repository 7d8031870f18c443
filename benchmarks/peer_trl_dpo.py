"""TRL's DPOTrainer on the shared pairs; runs in the peer's own environment and prints JSON lines.

.venv-peer/bin/python benchmarks/peer_trl_dpo.py WORKLOAD_DIR '{"learning_rate": 1e-5, ...}'

Options that are absent have TRL's defaults.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peer_trl import Tell, lora_config, quantized_base, read, say
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer


def conversations(path: Path) -> Dataset:
    rows = read(path)
    names = {"prompt": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    values = [{name: row[key] for name, key in names.items()} for row in rows]
    return Dataset.from_list([value | {"prompt": value["prompt"]["messages"]} for value in values])


def main(directory: Path, options: dict) -> None:
    work = json.loads((directory / "peer.json").read_text())
    torch.set_num_threads(work["threads"])
    config = DPOConfig(
        output_dir=str(directory / "trl-out"),
        num_train_epochs=1,
        max_length=1024,
        per_device_eval_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=work["device"] == "cpu",
        dataloader_pin_memory=False,
        seed=0,
        **options,
    )
    trainer = DPOTrainer(
        model=quantized_base(work),
        args=config,
        train_dataset=conversations(directory / "train.jsonl"),
        eval_dataset=conversations(directory / "held-out.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(work["base"]),
        peft_config=lora_config(work),
    )
    tell = Tell()
    trainer.add_callback(tell)
    counting = trainer.model.register_forward_pre_hook(tell.count, with_kwargs=True)
    say(
        kind="ready",
        learning_rate=config.learning_rate,
        beta=config.beta,
        batch_size=config.per_device_train_batch_size * config.gradient_accumulation_steps,
    )
    trainer.train()
    counting.remove()
    metrics = trainer.evaluate()
    say(kind="validation", loss=metrics["eval_loss"], accuracy=metrics["eval_rewards/accuracies"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
