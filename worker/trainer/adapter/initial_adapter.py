"""The adapter before the first step: a new one, or the tensors of an earlier one that training goes on from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import Reason
from app.system.artifact_directory import ADAPTER_WEIGHTS, MANIFEST, ManifestMismatch, sha256_file, verify
from worker.trainer.adapter.dora import train_magnitudes
from worker.trainer.adapter.lora import Adapter, make_adapter
from worker.trainer.adapter.modules_to_save import train_modules_to_save
from worker.trainer.model.base_model import Base
from worker.trainer.runtime.failures import Failure


def initial_adapter(spec: RunSpec, workdir: Path, base: Base) -> Adapter:
    """Return the adapter, with the layers that DoRA and modules_to_save need in the model. Raises Failure."""
    adapter = make_adapter(spec.lora, spec.seed, base.layers, base.device)
    if spec.lora.use_dora:
        train_magnitudes(base, adapter)
    base.modules_to_save |= train_modules_to_save(base.model, spec.lora.modules_to_save, adapter, base.switch)
    if spec.start_adapter is not None:
        _go_on_from(workdir / spec.start_adapter, spec.start_adapter_sha256, adapter)
    return adapter


@torch.no_grad()
def _go_on_from(directory: Path, manifest_sha256: str | None, adapter: Adapter) -> None:
    """Its A, B and whatever else it trained; the optimizer begins anew. Every byte is what the manifest says."""
    try:
        verify(directory)
        if sha256_file(directory / MANIFEST) != manifest_sha256:
            raise ManifestMismatch(f"{directory.name}: its manifest is not the one that the spec names")
    except ManifestMismatch as error:
        raise Failure(Reason.TRAINER_CRASHED, f"The adapter to go on from is damaged: {error}") from error
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    named = adapter.named_parameters()
    wrong = sorted(tensors.keys() ^ named.keys())
    wrong += [name for name in named.keys() & tensors.keys() if named[name].shape != tensors[name].shape]
    if wrong:
        text = (
            f"The adapter to go on from has other tensors than this run trains ({wrong[0]}): give the same lora knobs."
        )
        raise Failure(Reason.INVALID_SPEC, text, "model")
    for name, parameter in named.items():
        parameter.copy_(tensors[name])
