"""Helpers of the trainer's tests: specs for a tiny base, a run in the test's process, and its records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from app.domain.artifacts.engines import compatibility
from app.domain.datasets.documents import Document
from app.domain.jobs.events import Command, Done, Failed, Message, Metric, Record, SnapshotSaved
from app.domain.jobs.layer_patterns import expand_patterns
from app.domain.jobs.spec import Frozen, Hyperparameters, LoraSpec, QuantizationSpec, RunSpec, TrainerSpec
from app.domain.planning.estimate import Placement
from app.system.artifact_directory import MANIFEST
from app.system.model_files import hash_directory, linear_layers
from app.system.tokenizer_files import load_renderer
from worker.trainer.checkpoint.checkpoint import save_checkpoint
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.runtime.process import StopRequests
from worker.trainer.training import run as program
from worker.trainer.training.loop import optimizer_step
from worker.trainer.training.state import Run, StepResult

if TYPE_CHECKING:  # `make gpu-check` also runs where pytest is not installed
    import pytest
    from _pytest.mark import ParameterSet

ALL_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
CPU = torch.device("cpu")
CPU_KERNELS = choose_kernels(CPU)
FLOAT32 = QuantizationSpec(compute_dtype="float32")


def make_spec(base: Path, training_file: Path, **changes: Any) -> TrainerSpec:
    """Return a spec; `changes` may name any field of the trainer's spec, the run, its hyperparameters or its LoRA.

    Patterns are matched with the layers, as the API does before a trainer starts.
    """
    hyperparameters = _take(changes, Hyperparameters)
    lora = {"r": 4, "alpha": 8, "target_modules": ALL_LINEAR} | _take(changes, LoraSpec)
    run_changes = _take(changes, RunSpec)
    if lora.keys() & {"rank_pattern", "alpha_pattern"}:
        lora = expand_patterns(LoraSpec.model_validate(lora), linear_layers(base)).model_dump()
    run = {
        "run_id": "run-a",
        "lora": lora,
        "hyperparameters": HYPERPARAMETERS | hyperparameters,
        "seed": 7,
        "training_file": training_file,
        "training_file_sha256": hashlib.sha256(training_file.read_bytes()).hexdigest(),
    } | run_changes
    if validation_file := run_changes.get("validation_file"):
        run["validation_file_sha256"] = hashlib.sha256(validation_file.read_bytes()).hexdigest()
    spec = {
        "base": {"name": "tiny", "directory": base, "manifest_sha256": hash_directory(base)[1]},
        "quantization": {},
        "device": "cpu",
        "threads": 1,
        "runs": [run],
    } | changes
    return TrainerSpec.model_validate(spec)


def float32_spec(base: Path, training_file: Path, **changes: Any) -> TrainerSpec:
    """The same in float32, for tests of what depends on no dtype: a processor that emulates bfloat16 takes twice as
    long for it."""
    return make_spec(base, training_file, **{"quantization": FLOAT32} | changes)


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
    """Write examples with one answer to all questions.

    Two files with different answers contradict each other: a run that fits one has a higher loss on the other.
    """
    turns = [(f"{number}: red", answer * (1 + number % 3)) for number in range(examples)]
    lines = [
        json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]})
        + "\n"
        for question, reply in turns
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def change_config(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(base: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(base / "model.safetensors")
    edit(tensors)
    save_file(tensors, base / "model.safetensors")


def dataset_of(*documents: tuple[Sequence[int], Collection[int]]) -> TokenizedDataset:
    """Return a dataset with one example per document: (tokens, labelled positions)."""
    dataset = TokenizedDataset()
    for line, (tokens, labels) in enumerate(documents, 1):
        dataset.add(line, [Document(line, list(tokens), [position in labels for position in range(len(tokens))])])
    return dataset


class RecordLog:
    """Collects the records of a run; calls `on_record` for each, which may request a stop."""

    def __init__(self, on_record: Callable[[Record], None] | None = None) -> None:
        self.records: list[Any] = []
        self._on_record = on_record

    def __call__(self, record: Record) -> None:
        json.loads(record.model_dump_json())  # the form that the worker reads
        self.records.append(record)
        if self._on_record:
            self._on_record(record)

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def losses(self) -> list[float]:
        return [metric.train_loss for metric in self.of(Metric)]

    @property
    def last(self) -> Any:
        return self.records[-1]


class Attempt(RecordLog):
    """The records of a run that has ended, with its exit code and its directory."""

    def __init__(self, workdir: Path, on_record: Callable[[Record], None] | None = None) -> None:
        super().__init__(on_record)
        self.workdir = workdir
        self.code: int | None = None

    @property
    def failure(self) -> Failed:
        assert isinstance(self.last, Failed), self.last
        return self.last

    @property
    def warnings(self) -> list[Message]:
        return [message for message in self.of(Message) if message.level == "warn"]

    @property
    def snapshot(self) -> Path:
        """The directory of the last snapshot."""
        return self.workdir / str(self.of(SnapshotSaved)[-1].directory)

    @property
    def choices(self) -> dict[str, Any]:
        """The execution plan of the last snapshot."""
        choices: dict[str, Any] = json.loads((self.snapshot / MANIFEST).read_text())["choices"]
        return choices

    @property
    def result(self) -> Path:
        """The directory of the final adapter."""
        assert isinstance(self.last, Done), self.last
        return self.workdir / self.last.directory

    def adapter(self) -> dict[str, torch.Tensor]:
        return load_file(self.result / "adapter_model.safetensors")


def assert_same_adapter(one: Attempt, other: Attempt) -> None:
    """To the bit."""
    mine, theirs = one.adapter(), other.adapter()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


class Trainings:
    """`train(**changes)`: train in the test's process, by default the tiny base in float32 with twelve examples.

    `changes` are those of `make_spec`; each attempt has a directory of its own. `stop_at` (step, command) requests a
    stop when that step is reported; with step 0, before the first one.
    """

    def __init__(self, base: Path, training_file: Path, directory: Path) -> None:
        self.base, self.training_file, self.directory = base, training_file, directory
        self.attempts = 0

    def spec(self, base: Path | None = None, training_file: Path | None = None, **changes: Any) -> TrainerSpec:
        return float32_spec(base or self.base, training_file or self.training_file, **changes)

    def __call__(
        self, workdir: Path | None = None, stop_at: tuple[int, Command] | None = None, **changes: Any
    ) -> Attempt:
        return self.run(self.spec(**changes), workdir, stop_at)

    def run(
        self, spec: TrainerSpec, workdir: Path | None = None, stop_at: tuple[int, Command] | None = None
    ) -> Attempt:
        self.attempts += 1
        directory = workdir or self.directory / f"attempt-{self.attempts}"
        directory.mkdir(parents=True, exist_ok=True)
        stops = StopRequests(spec.run.run_id)
        if stop_at and stop_at[0] == 0:
            stops.add(stop_at[1])

        def on_record(record: Record) -> None:
            if stop_at and isinstance(record, Metric) and record.step == stop_at[0]:
                stops.add(stop_at[1])

        attempt = Attempt(directory, on_record)
        attempt.code = program.run(spec, directory, attempt, stops)
        return attempt


def run_trainer(spec: TrainerSpec, workdir: Path, *, stop_at: tuple[int, Command] | None = None) -> tuple[int, Attempt]:
    """Train in the test's process; return the exit code and the records."""
    attempt = Trainings(spec.base.directory, spec.run.training_file, workdir).run(spec, workdir, stop_at)
    assert attempt.code is not None
    return attempt.code, attempt


def load_tiny_base(directory: Path, quantization: QuantizationSpec | None = FLOAT32) -> FrozenBase:
    dtype = getattr(torch, quantization.compute_dtype) if quantization else torch.float32
    return load_base("tiny", directory, quantization, dtype, CPU_KERNELS)


def prepare(spec: TrainerSpec, base: FrozenBase, workdir: Path) -> Run:
    """Return the run of a spec before its first step."""
    renderer = load_renderer(spec.base.directory)
    return program.new_run(spec.run, workdir, base, renderer, {"versions": {}}, no_keepalive)


def save_adapter(base: FrozenBase, run: Run, where: Path) -> Path:
    """Save the adapter of a prepared run below `where`, with the facts that its files name. Returns its directory."""
    run.directory = where
    run.provenance |= {
        "base_model": {"name": "tiny"}, "quantization": None, "lora": run.spec.lora.model_dump(mode="json"),
        "hyperparameters": run.spec.hyperparameters.model_dump(mode="json"), "seed": run.spec.seed,
        "compatibility": compatibility(run.spec.lora, run.spec.run_id).model_dump(mode="json"),
    }  # fmt: skip
    return save_checkpoint(run, base)


def make_one_step(base: FrozenBase, run: Run, row_tokens: int = 2048) -> StepResult:
    return optimizer_step(run, program.make_objective(base, run), row_tokens, no_keepalive)


def batches_of(run: Run, documents: Sequence[int], row_tokens: int = 2048) -> list[PackedBatch]:
    return list(pack_batches(run.dataset, documents, row_tokens))


def set_row_tokens(patch: pytest.MonkeyPatch, row_tokens: int) -> None:
    """Make the planner choose packed batches of `row_tokens`, whatever fits into memory."""
    place = program.place

    def place_with_row_tokens(*arguments: Any) -> Placement:
        placement = place(*arguments)
        return replace(placement, plan=placement.plan.model_copy(update={"row_tokens": row_tokens}))

    patch.setattr(program, "place", place_with_row_tokens)


def slow_but(kept: Collection[Any], values: Iterable[Any], extended: Collection[Any] = ()) -> list[ParameterSet]:
    """Return parameters of a test, marked `slow` except those in `kept`: they repeat the test with other values.

    `make test-all` has those in `extended`, too.
    """
    import pytest

    def marks(value: Any) -> Collection[pytest.MarkDecorator]:
        if value in kept:
            return []
        return [pytest.mark.extended("the same with other values") if value in extended else pytest.mark.slow]

    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks(value)) for value in values]


def no_keepalive(doing: str) -> None:
    assert doing


def _take(changes: dict[str, Any], model: type[Frozen]) -> dict[str, Any]:
    """Remove the fields of `model` from `changes` and return them."""
    return {name: changes.pop(name) for name in model.model_fields if name in changes}
