"""Private snapshots: what a later attempt needs to go on as if nothing had happened.

    state.safetensors   A and B, AdamW's moments and step counts, the dropout generator's state, the best step's A and B
    MANIFEST.json       hashes of that file; the step; what must not change (`identity`); the plan (`choices`);
                        which validation was the best, and how long ago the loss last fell

That of step 0 is written before the first step and has no tensors: all but the plan follows from the spec.

safetensors and JSON only: nothing in a snapshot can run code. Which batch comes next follows from the step alone.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import ExecutionPlan
from app.system.artifact_directory import ManifestMismatch, verify, write_manifest
from app.system.snapshot_directories import newest_valid, snapshot_directories, step_directories
from worker.trainer.checkpoint.checkpoint import staged, step_directory
from worker.trainer.distributed import parallel
from worker.trainer.runtime.failures import Failure
from worker.trainer.snapshot.identity import differences
from worker.trainer.state import Run
from worker.trainer.validation.early_stopping import TENSOR_PREFIX, BestValidation

SNAPSHOTS = "snapshots"
STATE = "state.safetensors"
KEPT = 2
GENERATOR = "random/dropout"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read and verified; `tensors` are empty for that of step 0."""

    name: str
    step: int
    trained_tokens: int
    metrics: dict[str, float | None]  # of that step, for a checkpoint that is written anew
    plan: ExecutionPlan
    versions: dict[str, str]
    best: BestValidation
    tensors: dict[str, torch.Tensor]
    is_complete: bool = False  # no step is left


def save_snapshot(run: Run, identity: Mapping[str, Any], plan: ExecutionPlan) -> tuple[Path, str]:
    """Write a snapshot after `run.step` steps and keep the newest two. Returns (directory, its manifest's SHA-256).

    A damaged one of a later step, which the run could not go on from, must not count as one of them.
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
    with staged(run.directory / SNAPSHOTS, run.step, KEPT) as directory:
        if run.step:
            save_file(_tensors(run), directory / STATE)
        manifest_sha256 = write_manifest(directory, about)
        _forget_damaged(run)
    run.snapshot_step, run.snapshot_at, run.snapshot_plan = run.step, time.monotonic(), plan
    return step_directory(run.directory / SNAPSHOTS, run.step), manifest_sha256


def _forget_damaged(run: Run) -> None:
    mine = step_directory(run.directory / SNAPSHOTS, run.step)
    for each in step_directories(mine.parent):
        if (len(each.name), each.name) > (len(mine.name), mine.name):
            try:
                verify(each, sealed=True)
            except ManifestMismatch:
                shutil.rmtree(each)


def open_newest(
    directory: Path, identity: Mapping[str, Any], base_directory: Path
) -> tuple[Snapshot | None, list[str]]:
    """A snapshot, or the newest whole one of a directory of them, and what is wrong with each that is newer.

    Raises Failure: TRAINER_CRASHED where one was named and is damaged (the parent then chooses another), and those of
    `open_snapshot`.
    """
    if (several := snapshot_directories(directory)) is not None:
        return newest_valid(several, lambda each: open_snapshot(each, identity, base_directory))
    try:
        return open_snapshot(directory, identity, base_directory), []
    except ManifestMismatch as error:
        raise Failure(Reason.TRAINER_CRASHED, f"The snapshot to resume from is damaged: {error}") from error


def open_snapshot(directory: Path, identity: Mapping[str, Any], base_directory: Path) -> Snapshot:
    """Read a snapshot of this run, each byte of which is what its manifest says.

    Raises ManifestMismatch for a damaged one, Failure(INVALID_SPEC) naming each difference for one that belongs to
    another configuration, base or data set.
    """
    manifest = verify(directory, sealed=True)  # a trainer started by hand has nothing else to compare the manifest with
    if found := list(differences(manifest["identity"], identity, base_directory)):
        text = f"This run cannot go on from {directory.name}: " + "; ".join(found) + "."
        raise Failure(Reason.INVALID_SPEC, text, "resume_from")
    tensors = load_file(directory / STATE) if STATE in manifest["files"] else {}
    return Snapshot(
        name=directory.name,
        step=manifest["step"],
        trained_tokens=manifest["trained_tokens"],
        metrics=manifest["metrics"],
        plan=_read_plan(manifest["choices"]),
        versions=manifest["versions"],
        best=BestValidation.from_dict(manifest.get("best", {}), tensors),
        tensors=tensors,
        is_complete=manifest.get("is_complete", False),
    )


def _read_plan(values: dict[str, Any]) -> ExecutionPlan:
    """Raises Failure(INVALID_SPEC) for a field that this version does not know: it could not keep to it."""
    if unknown := sorted(values.keys() - ExecutionPlan.model_fields.keys()):
        text = f"The snapshot was made by a newer version: this one does not know the choice {', '.join(unknown)}."
        raise Failure(Reason.INVALID_SPEC, text, "resume_from")
    return ExecutionPlan.model_validate(values)


def restore(run: Run, snapshot: Snapshot) -> None:
    """Put the run where the snapshot left it: weights, moments, random state, position."""
    if snapshot.tensors:
        _restore_tensors(run, snapshot.tensors)
        _restore_random_state(run, snapshot)
    run.step = run.first_step = run.snapshot_step = snapshot.step
    run.snapshot_plan = snapshot.plan
    run.trained_tokens, run.metrics, run.best = snapshot.trained_tokens, dict(snapshot.metrics), snapshot.best


def _restore_tensors(run: Run, tensors: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in run.adapter.named_parameters().items():
            parameter.copy_(tensors[f"adapter/{name}"])
            moments = {key: tensors.get(f"optimizer/{name}/{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                run.optimizer.state[parameter] = {key: _placed(moment, parameter) for key, moment in moments.items()}


def _restore_random_state(run: Run, snapshot: Snapshot) -> None:
    """A GPU's random numbers are not a CPU's. Where they can't go on, they begin anew, but not with those of step 0."""
    generator, rank, tensors = run.adapter.generator, parallel.rank(), snapshot.tensors
    state = tensors.get(f"{GENERATOR}/{rank}", tensors[GENERATOR])
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(random.Random(f"{run.spec.seed}/{rank}/{snapshot.step}").getrandbits(32))


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    tensors = {GENERATOR: run.adapter.generator.get_state()}
    tensors |= {f"{GENERATOR}/{rank}": state for rank, state in enumerate(run.random_states)}
    tensors |= {f"{TENSOR_PREFIX}{name}": tensor for name, tensor in run.best.tensors.items()}
    for name, parameter in run.adapter.named_parameters().items():
        tensors[f"adapter/{name}"] = parameter.detach()
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _placed(moment: torch.Tensor | None, parameter: torch.nn.Parameter) -> torch.Tensor:
    assert moment is not None
    return moment.clone().to(parameter.device)  # a fused AdamW keeps its step count beside the moments
