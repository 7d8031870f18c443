"""Private snapshots, from which a later attempt resumes with the same result to the bit.

    state.safetensors   adapter weights, AdamW's moments and step counts, dropout generator states, best step's weights
    MANIFEST.json       hash of that file; the step; the values that must not change (`identity`); the execution plan
                        (`choices`); the best validation and the number of validations since the loss last fell

The snapshot of step 0 is written before the first step and has no tensors: all but the plan follows from the spec.

Snapshots consist of safetensors and JSON, which cannot contain code. The step determines the next batch.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.spec import BaseSpec, Hyperparameters, LoraSpec, QuantizationSpec, RunSpec
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import ExecutionPlan
from app.system.artifact_directory import (
    ManifestMismatch,
    newest_valid,
    sha256_file,
    snapshot_directories,
    step_directories,
    verify,
    write_manifest,
)
from worker.trainer.checkpoint.checkpoint import TOKENIZER_FILES, staged, step_directory
from worker.trainer.distributed import parallel
from worker.trainer.objective.optimizer import allocate_moments, moments_of, restore_moments
from worker.trainer.runtime.failures import Failure
from worker.trainer.training.state import Run
from worker.trainer.validation.early_stopping import TENSOR_PREFIX, BestValidation

WORLD_SIZE = "world_size"  # may differ; it is in the identity because earlier releases compare it
SNAPSHOTS = "snapshots"
STATE_FILE = "state.safetensors"
KEPT_SNAPSHOTS = 2
GENERATOR_PREFIX = "random/dropout"  # of the tensor names of the generator states


def identity_of(run: RunSpec, base: BaseSpec, quantization: QuantizationSpec | None) -> dict[str, Any]:
    """Return the identity under dotted names: base, tokenizer, chat template, data, and the complete configuration."""
    # The manifest of the base covers these files as well, but here a difference names the file.
    tokenizer_files = [base.directory / name for name in TOKENIZER_FILES]
    tokenizer_sha256 = {path.name: sha256_file(path) for path in tokenizer_files if path.is_file()}
    hashes = {"start_adapter_sha256", "training_file_sha256", "validation_file_sha256"}
    return _flatten(
        {
            "base_model": {"name": base.name, "manifest_sha256": base.manifest_sha256},
            "quantization": quantization.model_dump() if quantization else None,
            **run.model_dump(include={"lora", "hyperparameters", "chat_template_kwargs", "seed"} | hashes),
            "tokenizer_sha256": tokenizer_sha256,
            WORLD_SIZE: parallel.world_size(),
        }
    )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """Describe each difference between the identity in a snapshot and that of the current run."""
    # Of parameters that an older snapshot did not know, or that are stored only when set.
    defaults: dict[str, Any] = {}
    for section, model in (("lora", LoraSpec), ("hyperparameters", Hyperparameters)):
        fields = model.model_fields.items()
        defaults |= _flatten({section: {name: field.default for name, field in fields if not field.is_required()}})
    saved, current = defaults | dict(saved), defaults | dict(current)
    for name in sorted((saved.keys() | current.keys()) - {WORLD_SIZE}):
        if saved.get(name) != current.get(name):
            yield f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            leaves |= _flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


@dataclass(frozen=True)
class LoadedSnapshot:
    """A snapshot that was read and verified; at step 0 without tensors."""

    name: str
    step: int
    trained_tokens: int
    metrics: dict[str, float | None]  # of that step, in case its checkpoint must be written again
    plan: ExecutionPlan
    versions: dict[str, str]
    world_size: int
    best: BestValidation
    tensors: dict[str, torch.Tensor]
    is_complete: bool = False  # no step is left


def save_snapshot(run: Run, identity: Mapping[str, Any], plan: ExecutionPlan) -> tuple[Path, str]:
    """Write a snapshot after `run.step` steps and keep the newest two. Returns (directory, SHA-256 of its manifest).

    Damaged snapshots of later steps are removed first, so that they do not count as the newest.
    """
    about = {
        "step": run.step,
        "trained_tokens": run.trained_tokens,
        "metrics": run.metrics,
        "identity": identity,
        "choices": plan.model_dump(mode="json"),
        "best": run.best.as_dict(),
        "is_complete": run.is_complete,
        "versions": run.provenance["versions"],
    }
    written = step_directory(run.directory / SNAPSHOTS, run.step)
    with staged(written.parent, run.step, KEPT_SNAPSHOTS) as directory:
        if run.step:
            save_file(_tensors(run), directory / STATE_FILE)
        manifest_sha256 = write_manifest(directory, about)
        for snapshot in step_directories(written.parent):
            if (len(snapshot.name), snapshot.name) > (len(written.name), written.name):
                try:
                    verify(snapshot, sealed=True)
                except ManifestMismatch:
                    shutil.rmtree(snapshot)
    run.snapshot_step, run.snapshot_at, run.snapshot_plan = run.step, time.monotonic(), plan
    return written, manifest_sha256


def open_newest(directory: Path, identity: Mapping[str, Any]) -> tuple[LoadedSnapshot | None, list[str]]:
    """Open the snapshot in `directory`, or the newest valid one of a directory of snapshots.

    Returns it, and the problems of the newer ones. Raises Failure(TRAINER_CRASHED) if `directory` is one snapshot and
    damaged (the worker then chooses another), and the failures of `open_snapshot`.
    """
    if (several := snapshot_directories(directory)) is not None:
        return newest_valid(several, lambda each: open_snapshot(each, identity))
    try:
        return open_snapshot(directory, identity), []
    except ManifestMismatch as error:
        raise Failure(Reason.TRAINER_CRASHED, f"The snapshot to resume from is damaged: {error}") from error


def open_snapshot(directory: Path, identity: Mapping[str, Any]) -> LoadedSnapshot:
    """Read a snapshot of this run and verify every file against its manifest.

    Raises ManifestMismatch for a damaged one. Raises Failure(INVALID_SPEC), with each difference, for a snapshot with
    another configuration, base model or dataset, or with a field of the execution plan that this version does not have.
    """
    manifest = verify(directory, sealed=True)  # without a worker, nothing else can verify the manifest
    if changes := list(differences(manifest["identity"], identity)):
        text = f"This run cannot resume from {directory.name}: " + "; ".join(changes) + "."
        raise Failure(Reason.INVALID_SPEC, text, "resume_from")
    tensors = load_file(directory / STATE_FILE) if STATE_FILE in manifest["files"] else {}
    plan = manifest["choices"]
    if unknown := sorted(plan.keys() - ExecutionPlan.model_fields.keys()):  # which this version could not apply
        text = (
            f"The snapshot was made by a newer version: its execution plan has {', '.join(unknown)}, which this "
            "version does not know. Use that version or a later one."
        )
        raise Failure(Reason.INVALID_SPEC, text, "resume_from")
    return LoadedSnapshot(
        name=directory.name,
        step=manifest["step"],
        trained_tokens=manifest["trained_tokens"],
        metrics=manifest["metrics"],
        plan=ExecutionPlan.model_validate(plan),
        versions=manifest["versions"],
        world_size=manifest["identity"].get(WORLD_SIZE, 1),
        best=BestValidation.from_dict(manifest.get("best", {}), tensors),
        tensors=tensors,
        is_complete=manifest.get("is_complete", False),
    )


def restore(run: Run, snapshot: LoadedSnapshot) -> None:
    """Restore weights, moments, random state and step of the run, and free the tensors of the snapshot."""
    if tensors := snapshot.tensors:
        if any(name.startswith("optimizer/") for name in tensors):  # a complete run needs none
            allocate_moments(run.optimizer)
        with torch.no_grad():
            for name, parameter in run.adapter.named_parameters().items():
                parameter.copy_(tensors[f"adapter/{name}"])
                saved = {key: tensors.get(f"optimizer/{name}/{key}") for key in moments_of(run.optimizer, parameter)}
                restore_moments(run.optimizer, parameter, saved)
        _restore_random_state(run, snapshot)
        tensors.clear()
    run.step = run.first_step = run.snapshot_step = snapshot.step
    run.snapshot_plan = snapshot.plan
    run.trained_tokens, run.metrics, run.best = snapshot.trained_tokens, dict(snapshot.metrics), snapshot.best


def _restore_random_state(run: Run, snapshot: LoadedSnapshot) -> None:
    """Restore the dropout generator of this process, or seed it by run, process and step.

    The snapshot has no state for a process that is new, and the state of a CPU does not fit a GPU.
    """
    generator, rank, tensors = run.adapter.generator, parallel.rank(), snapshot.tensors
    state = tensors.get(f"{GENERATOR_PREFIX}/{rank}", None if rank else tensors[GENERATOR_PREFIX])
    if state is not None and len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(random.Random(f"{run.spec.seed}/{rank}/{snapshot.step}").getrandbits(32))


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    tensors = {GENERATOR_PREFIX: run.adapter.generator.get_state()}
    tensors |= {f"{GENERATOR_PREFIX}/{rank}": state for rank, state in enumerate(run.random_states)}
    tensors |= {f"{TENSOR_PREFIX}{name}": tensor for name, tensor in run.best.tensors.items()}
    for name, parameter in run.adapter.named_parameters().items():
        tensors[f"adapter/{name}"] = parameter.detach()
        for key, value in moments_of(run.optimizer, parameter).items():
            tensors[f"optimizer/{name}/{key}"] = value
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
