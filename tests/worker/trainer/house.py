"""What the trainer's tests share: specs for a tiny base, a run in this process, and its records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.base_models.catalog import hash_directory, linear_layers
from app.domain.datasets.render import Renderer
from app.domain.jobs.events import Command, Done, Failed, Metric, Record
from app.domain.jobs.layer_patterns import by_layer
from app.domain.jobs.spec import LoraSpec, QuantizationSpec, TrainerSpec
from app.domain.planning.estimate import Placement
from worker.trainer import run as program
from worker.trainer.data.batch import PackedBatch, pack_batches
from worker.trainer.loop import optimizer_step
from worker.trainer.model.base_model import Base, load_base
from worker.trainer.runtime.stop import StopRequests
from worker.trainer.state import Run, Step

ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
CPU = torch.device("cpu")
FLOAT32 = QuantizationSpec(compute_dtype="float32")


def make_spec(base: Path, training_file: Path, **changes: Any) -> TrainerSpec:
    """A spec; `changes` may name any field of it, of its hyperparameters, of its LoRA, or of the spec.

    Patterns are matched, as they are before a trainer gets them.
    """
    knobs = _take(changes, "n_epochs", "batch_size", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm",
                  "lr_scheduler_type", "context_length", "packing", "max_steps", "eval_steps", "early_stopping",
                  "promote_best", "beta")  # fmt: skip
    lora = _take(changes, "r", "alpha", "dropout", "target_modules", "use_rslora", "use_dora", "rank_pattern",
                 "alpha_pattern", "modules_to_save")  # fmt: skip
    of_run = _take(changes, "run_id", "method", "seed", "validation_file", "resume_from", "sample_prompts",
                   "start_adapter", "start_adapter_sha256", "start_adapter_name")  # fmt: skip
    lora = {"r": 4, "alpha": 8, "target_modules": ALL_LINEAR} | lora
    if lora.keys() & {"rank_pattern", "alpha_pattern"}:
        lora = by_layer(LoraSpec.model_validate(lora), linear_layers(base)).model_dump()
    one = {
        "run_id": "run-a",
        "lora": lora,
        "hyperparameters": HYPERPARAMETERS | knobs,
        "seed": 7,
        "training_file": training_file,
        "training_file_sha256": hashlib.sha256(training_file.read_bytes()).hexdigest(),
    } | of_run
    if validation_file := of_run.get("validation_file"):
        one["validation_file_sha256"] = hashlib.sha256(validation_file.read_bytes()).hexdigest()
    spec = {
        "base": {"name": "tiny", "directory": base, "manifest_sha256": hash_directory(base)[1]},
        "quantization": {},
        "device": "cpu",
        "threads": 1,
        "runs": [one],
    } | changes
    return TrainerSpec.model_validate(spec)


HYPERPARAMETERS = {
    "n_epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "learning_rate_multiplier": 1.0,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "context_length": 512,
}


def write_answers(path: Path, examples: int, answer: str) -> Path:
    """Examples with one answer to all questions. Two files with different answers contradict each other: the better a
    run knows the one, the higher rises its loss on the other."""
    turns = [(f"{number}: red", answer * (1 + number % 3)) for number in range(examples)]
    lines = [
        json.dumps({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}) + "\n"
        for ask, say in turns
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


class Log:
    """Collects records; can ask for a stop when it sees one."""

    def __init__(self, react: Callable[[Record], None] | None = None) -> None:
        self.records: list[Any] = []
        self._react = react

    def __call__(self, record: Record) -> None:
        json.loads(record.model_dump_json())  # what a parent reads
        self.records.append(record)
        if self._react:
            self._react(record)

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def losses(self) -> list[float]:
        return [metric.train_loss for metric in self.of(Metric)]

    @property
    def last(self) -> Any:
        return self.records[-1]


def run_here(spec: TrainerSpec, workdir: Path, *, stop_at: tuple[int, Command] | None = None) -> tuple[int, Log]:
    """The whole program but its process. `stop_at` (step, command) asks for a stop when that step is reported."""
    workdir.mkdir(parents=True, exist_ok=True)
    stops = StopRequests(spec.run.run_id)

    def react(record: Record) -> None:
        if stop_at and isinstance(record, Metric) and record.step == stop_at[0]:
            stops.add(stop_at[1])

    log = Log(react)
    return program.run(spec, workdir, log, stops), log


def final_adapter(log: Log, workdir: Path) -> dict[str, torch.Tensor]:
    assert isinstance(log.last, Done), log.last
    return load_file(workdir / log.last.directory / "adapter_model.safetensors")


def failure(log: Log) -> Failed:
    assert isinstance(log.last, Failed), log.last
    return log.last


def load_tiny(directory: Path, quantization: QuantizationSpec | None = FLOAT32) -> Base:
    dtype = getattr(torch, quantization.compute_dtype) if quantization else torch.float32
    return load_base("tiny", directory, quantization, dtype, CPU)


def prepare(spec: TrainerSpec, base: Base, workdir: Path) -> Run:
    """The run of a spec, ready for its first step."""
    renderer = Renderer.from_directory(spec.base.directory)
    return program.prepare(spec.run, workdir, base, renderer, {"versions": {}}, no_keepalive)


def one_step(base: Base, run: Run, row_tokens: int = 2048) -> Step:
    return optimizer_step(run, program.make_objective(base, run), row_tokens, no_keepalive)


def batches_of(run: Run, documents: Sequence[int], row_tokens: int = 2048) -> list[PackedBatch]:
    return list(pack_batches(run.dataset, documents, row_tokens))


def with_rows_of(patch: pytest.MonkeyPatch, row_tokens: int) -> None:
    """Have the plan choose this row length, whatever there is room for."""
    place = program.place

    def chosen(*arguments: Any) -> Placement:
        placement = place(*arguments)
        return replace(placement, plan=placement.plan.model_copy(update={"row_tokens": row_tokens}))

    patch.setattr(program, "place", chosen)


def no_keepalive(doing: str) -> None:
    assert doing


def _take(changes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: changes.pop(name) for name in names if name in changes}
