"""One workload for both sides: the same base, rows and labels in the same order, and start of the adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from app.domain.jobs.spec import BaseSpec, Hyperparameters, LoraSpec, QuantizationSpec, RunSpec, TrainerSpec
from app.domain.jobs.states import Reason
from app.system import model_files
from app.system.artifact_directory import sha256_file
from app.system.tokenizer_files import load_renderer
from worker.trainer.adapter.lora import make_adapter
from worker.trainer.data.batch import TokenizedDataset, read_dataset
from worker.trainer.data.schedule import make_schedule
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.base_model import open_base

RUN_ID = "bench"
RANK, ALPHA, BATCH, SEED = 16, 32.0, 8, 7


@dataclass(frozen=True)
class Workload:
    directory: Path
    base: Path
    spec: TrainerSpec
    tokens_of_step: list[int]  # real tokens
    labelled_of_step: list[int]

    @property
    def rows(self) -> Path:
        return self.directory / "rows.jsonl"

    @property
    def validation_rows(self) -> Path:
        return self.directory / "validation-rows.jsonl"

    @property
    def adapter_start(self) -> Path:
        return self.directory / "adapter-start.safetensors"


def make_workload(
    directory: Path, base: Path, data: Path, validation: Path, steps: int, learning_rate: float, device: str
) -> Workload:
    """Write spec, rows and the adapter's start below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = make_spec(base, data, validation, steps, learning_rate, device)
    run = spec.run
    renderer = load_renderer(base)
    dataset = read_dataset(renderer, data, run.data_parameters, Reason.INVALID_TRAINING_FILE, _silent)
    plan = make_schedule(run.hyperparameters, len(dataset), run.seed)
    batches = [plan.examples_of(step) for step in range(steps)]
    _write_rows(directory / "rows.jsonl", dataset, [example for batch in batches for example in batch])
    held_out = read_dataset(renderer, validation, run.data_parameters, Reason.INVALID_VALIDATION_FILE, _silent)
    _write_rows(directory / "validation-rows.jsonl", held_out, list(range(len(held_out))))
    write_start(directory / "adapter-start.safetensors", spec)
    return Workload(
        directory,
        base,
        spec,
        tokens_of_step=[sum(len(_row(dataset, example)[0]) for example in batch) for batch in batches],
        labelled_of_step=[sum(sum(_row(dataset, example)[1]) for example in batch) for batch in batches],
    )


def make_spec(
    base: Path,
    data: Path,
    validation: Path | None,
    steps: int,
    learning_rate: float,
    device: str,
    batch_size: int = BATCH,
) -> TrainerSpec:
    entry = model_files.read_catalog_entry(base)
    run = RunSpec(
        run_id=RUN_ID,
        seed=SEED,
        lora=LoraSpec(r=RANK, alpha=ALPHA, target_modules=tuple(sorted(entry.target_modules))),
        hyperparameters=Hyperparameters(
            n_epochs=1,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_multiplier=None,
            warmup_ratio=0.0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            lr_scheduler_type="constant",
            context_length=min(1024, entry.context_length),
            max_steps=steps,
        ),
        training_file=data.resolve(),
        training_file_sha256=sha256_file(data),
        validation_file=validation.resolve() if validation else None,
        validation_file_sha256=sha256_file(validation) if validation else None,
    )
    described = BaseSpec(name=base.name, directory=base, manifest_sha256=model_files.hash_directory(base)[1])
    return TrainerSpec(base=described, quantization=QuantizationSpec(), runs=(run,), device=device)  # type: ignore[arg-type]


def _silent(_doing: str) -> None:
    """Ignored: no watchdog runs here."""


def _row(dataset: TokenizedDataset, example: int) -> tuple[list[int], list[bool]]:
    tokens: list[int] = []
    labelled: list[bool] = []
    for document in dataset.documents(example):
        ids, marks = dataset.tokens_and_labels(document)
        tokens += list(ids)
        labelled += [bool(mark) for mark in marks]
    return tokens, labelled


def _write_rows(path: Path, dataset: TokenizedDataset, examples: list[int]) -> None:
    with path.open("w") as file:
        for example in examples:
            tokens, labelled = _row(dataset, example)
            labels = [token if mark else -100 for token, mark in zip(tokens, labelled, strict=True)]
            file.write(json.dumps({"input_ids": tokens, "labels": labels}) + "\n")


def write_start(path: Path, spec: TrainerSpec) -> None:
    """The initial LoRA weights that Tunery draws from the seed, under PEFT's names, for the peer to load."""
    base = open_base(spec.base, None, torch.bfloat16, choose_kernels(torch.device("cpu")))
    adapter = make_adapter(spec.run.lora, spec.run.seed, base.layers, base.kernels)
    save_file({name: tensor.detach().clone() for name, tensor in adapter.named_parameters().items()}, path)
