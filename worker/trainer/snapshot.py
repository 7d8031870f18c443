"""Private snapshots: what a later attempt needs to go on as if nothing had happened.

    state.safetensors   A and B, AdamW's moments and step counts, the dropout generator's state, the best step's A and B
    MANIFEST.json       hashes of that file; the step; what must not change (`identity`); what was decided (`choices`);
                        which validation was the best, and how long ago the loss last fell; where the other runs were

That of step 0 is written before the first step and has no tensors: all but what was decided follows from the spec.

safetensors and JSON only: nothing in a snapshot can run code. Which batch comes next follows from the step alone.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from app.domain.artifacts import ManifestMismatch, verify, write_manifest
from app.domain.modes import Mode, Recompute
from app.domain.snapshots import by_step, candidates, first_whole
from app.domain.spec import MAX_SAMPLE_PROMPTS
from app.domain.states import Reason
from worker.trainer import parallel
from worker.trainer.best import TENSOR_PREFIX, Best
from worker.trainer.checkpoint import staged, step_directory
from worker.trainer.failures import Failure
from worker.trainer.identity import differences
from worker.trainer.state import Run

SNAPSHOTS = "snapshots"
STATE = "state.safetensors"
KEPT = 2
GENERATOR = "random/dropout"


@dataclass(frozen=True)
class Choices:
    """What was chosen once, at the first attempt, and would change the rounding if it were chosen again.

    A new one gets a default, which stands for what was done before there was a choice: older snapshots then still open.
    """

    row_tokens: int
    threads: int
    compute_dtype: str
    device: str
    recompute: Recompute = "nothing"
    recompute_layers: int = 0
    cache_weights: bool = False  # dequantised once and kept
    probed: bool = False  # the plan was confirmed by one forward and backward: never again
    peak_bytes: int = 0  # what it predicted, or measured if that was more
    out_of_memory_kills: int = 0  # of earlier attempts, which it reckoned with
    validation_row_tokens: int | None = None  # where a validation ran out of memory: fewer than a step has
    prompts_at_once: int | None = None  # of the sample prompts; None: all, 0: there was too little memory for one
    rendered_at: str | None = None  # ISO 8601: what a chat template was told that asks for the time

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Choices:
        """Raises Failure(INVALID_SPEC) for choices that this version does not know: it could not keep them."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            text = f"The snapshot was made by a newer version: this one does not know the choice {', '.join(unknown)}."
            raise Failure(Reason.INVALID_SPEC, text, "resume_from")
        return cls(**values)

    @property
    def mode(self) -> Mode:
        return Mode(
            row_tokens=self.row_tokens,
            recompute=self.recompute,
            recompute_layers=self.recompute_layers,
            cache_weights=self.cache_weights,
        )

    @property
    def effective_validation_row_tokens(self) -> int:
        """Those of a step, or fewer where that was chosen."""
        return min(self.row_tokens, self.validation_row_tokens or self.row_tokens)

    def laid_out(self, mode: Mode) -> Choices:
        return replace(self, **dict(mode))

    def after_kills(self, kills: int) -> Choices:
        """Smaller in what no plan knows, too: an attempt that the kernel killed cannot say what it was at."""
        if not kills:
            return self
        most = MAX_SAMPLE_PROMPTS if self.prompts_at_once is None else self.prompts_at_once
        return replace(
            self,
            out_of_memory_kills=kills,
            validation_row_tokens=max(1, min(self.effective_validation_row_tokens, self.row_tokens >> kills)),
            prompts_at_once=min(most, max(1, MAX_SAMPLE_PROMPTS >> kills)),
        )


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read and verified; `tensors` are empty for that of step 0."""

    name: str
    step: int
    trained_tokens: int
    metrics: dict[str, float | None]  # of that step: a checkpoint written anew says what the first one said
    choices: Choices
    versions: dict[str, str]
    best: Best
    tensors: dict[str, torch.Tensor]
    is_complete: bool = False  # no step is left
    beside: dict[str, int] = field(default_factory=dict)  # the other runs' steps at that moment


def save_snapshot(run: Run, identity: Mapping[str, Any], choices: Choices) -> tuple[Path, str]:
    """Write a snapshot after `run.step` steps and keep the newest two. Returns (directory, its manifest's SHA-256).

    A damaged one of a later step, which the run could not go on from, must not count as one of them.
    """
    about = {
        "step": run.step,
        "trained_tokens": run.trained_tokens,
        "metrics": run.metrics,
        "identity": identity,
        "choices": vars(choices),
        "best": run.best.as_dict(),
        "is_complete": run.is_complete,
        "beside": run.beside,
        "versions": run.facts["versions"],
    }
    with staged(run.directory / SNAPSHOTS, run.step, KEPT) as directory:
        if run.step:
            save_file(_tensors(run), directory / STATE)
        manifest_sha256 = write_manifest(directory, about)
        _forget_damaged(run)
    run.snapshot_step, run.snapshot_at, run.snapshot_choices = run.step, time.monotonic(), choices
    return step_directory(run.directory / SNAPSHOTS, run.step), manifest_sha256


def _forget_damaged(run: Run) -> None:
    mine = step_directory(run.directory / SNAPSHOTS, run.step)
    for each in by_step(mine.parent):
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
    if (several := candidates(directory)) is not None:
        return first_whole(several, lambda each: open_snapshot(each, identity, base_directory))
    try:
        return open_snapshot(directory, identity, base_directory), []
    except ManifestMismatch as error:
        raise Failure(Reason.TRAINER_CRASHED, f"The snapshot to resume from is damaged: {error}") from error


def open_snapshot(directory: Path, identity: Mapping[str, Any], base_directory: Path) -> Snapshot:
    """Read a snapshot whose every byte is what its manifest says, of a run that is this one.

    Raises ManifestMismatch for a damaged one, Failure(INVALID_SPEC) naming each difference for one that belongs to
    another configuration, base or data set.
    """
    manifest = verify(directory, sealed=True)  # by hand nobody else knows what the manifest was
    if found := list(differences(manifest["identity"], identity, base_directory)):
        text = f"This run cannot go on from {directory.name}: " + "; ".join(found) + "."
        raise Failure(Reason.INVALID_SPEC, text, "resume_from")
    tensors = load_file(directory / STATE) if STATE in manifest["files"] else {}
    return Snapshot(
        name=directory.name,
        step=manifest["step"],
        trained_tokens=manifest["trained_tokens"],
        metrics=manifest["metrics"],
        choices=Choices.from_dict(manifest["choices"]),
        versions=manifest["versions"],
        best=Best.from_dict(manifest.get("best", {}), tensors),
        tensors=tensors,
        is_complete=manifest.get("is_complete", False),
        beside=manifest.get("beside", {}),
    )


def restore(run: Run, snapshot: Snapshot) -> None:
    """Put a run where the snapshot left it: factors, moments, random state, position."""
    if snapshot.tensors:
        _restore_tensors(run, snapshot.tensors)
        _restore_random_state(run, snapshot)
    run.step = run.first_step = run.snapshot_step = snapshot.step
    run.snapshot_choices = snapshot.choices
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
