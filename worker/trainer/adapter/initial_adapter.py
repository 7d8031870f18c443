"""The adapter before the first step: a new one, or one with the tensors of an earlier adapter (the parent)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from app.domain.jobs.spec import LoraSpec, RunSpec
from app.domain.jobs.states import Reason
from app.system.artifact_directory import ADAPTER_WEIGHTS, MANIFEST, ManifestMismatch, sha256_file, verify
from worker.trainer.adapter.dora import train_magnitudes
from worker.trainer.adapter.lora import LoraAdapter, make_adapter
from worker.trainer.adapter.modules_to_save import train_modules_to_save
from worker.trainer.distributed import parallel
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.failures import Failure


def initial_adapter(spec: RunSpec, workdir: Path, base: FrozenBase) -> LoraAdapter:
    """Return the initial adapter, and add the layers of DoRA and modules_to_save to the model. Raises Failure."""
    adapter = _new_adapter(base, spec.lora, spec.seed, parallel.own_seed(spec.seed))
    if spec.start_adapter is not None:
        _load_parent_adapter(workdir / spec.start_adapter, spec.start_adapter_sha256, adapter)
    return adapter


def load_adapter(base: FrozenBase, lora: LoraSpec, directory: Path, manifest_sha256: str) -> LoraAdapter:
    """Return a saved adapter, and add the layers of DoRA and modules_to_save to the model. Raises Failure.

    `lora` has its patterns by layer, as the adapter's manifest has.
    """
    adapter = _new_adapter(base, lora, 0)
    _load_parent_adapter(directory, manifest_sha256, adapter)
    return adapter


def _new_adapter(base: FrozenBase, lora: LoraSpec, seed: int, dropout_seed: int | None = None) -> LoraAdapter:
    adapter = make_adapter(lora, seed, base.adaptable_layers, base.kernels, base.experts, dropout_seed)
    if lora.use_dora:
        train_magnitudes(base, adapter)
    base.modules_to_save |= train_modules_to_save(base.model, lora.modules_to_save, adapter, base.switch)
    return adapter


@torch.no_grad()
def _load_parent_adapter(directory: Path, manifest_sha256: str | None, adapter: LoraAdapter) -> None:
    """Verify the parent adapter and copy its tensors; the optimizer state starts new."""
    try:
        verify(directory)
        if sha256_file(directory / MANIFEST) != manifest_sha256:
            raise ManifestMismatch(f"{directory.name}: its manifest is not the one that the spec names")
    except ManifestMismatch as error:
        raise Failure(Reason.TRAINER_CRASHED, f"The parent adapter is damaged: {error}") from error
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    parameters = adapter.named_parameters()
    mismatches = sorted(tensors.keys() ^ parameters.keys())
    mismatches += [name for name in parameters.keys() & tensors.keys() if parameters[name].shape != tensors[name].shape]
    if mismatches:
        text = (
            f"The parent adapter and this run have different tensors ({mismatches[0]}). Use the lora parameters of the "
            "parent adapter."
        )
        raise Failure(Reason.INVALID_SPEC, text, "model")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
