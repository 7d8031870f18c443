"""TRL's DPOTrainer, ORPOTrainer or KTOTrainer on the shared rows; runs in the peer's environment, prints JSON lines.

.venv-peer/bin/python benchmarks/peer_trl_dpo.py WORKLOAD_DIR '{"learning_rate": 1e-5, ...}'

Options that are absent have TRL's defaults.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peer_trl import Tell, common_options, load_start, lora_config, quantized_base, read
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

TRAINERS = {"dpo": (DPOConfig, DPOTrainer), "orpo": (ORPOConfig, ORPOTrainer), "kto": (KTOConfig, KTOTrainer)}


def conversation(row: dict) -> dict:
    if "messages" in row:
        return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "label": row["label"]}
    answers = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {"prompt": row["input"]["messages"]} | answers


def main(directory: Path, options: dict) -> None:
    work = json.loads((directory / "peer.json").read_text())
    torch.set_num_threads(work["threads"])
    make_config, make_trainer = TRAINERS[work["method"]]
    trainer = make_trainer(
        model=quantized_base(work),
        args=make_config(
            output_dir=str(directory / "trl-out"),
            num_train_epochs=1,
            **(common_options(work) | options),
        ),
        train_dataset=Dataset.from_list([conversation(row) for row in read(Path(work["training_file"]))]),
        processing_class=AutoTokenizer.from_pretrained(work["base"]),
        peft_config=lora_config(work),
    )
    load_start(trainer.model, directory)
    tell = Tell()
    trainer.add_callback(tell)

    def count_trained(*arguments) -> None:
        if torch.is_grad_enabled():  # neither the reference nor KTO's mismatched rows
            tell.count(*arguments)

    trainer.model.register_forward_pre_hook(count_trained, with_kwargs=True)
    trainer.train()
    trainer.model.save_pretrained(directory / "trl-adapter")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
