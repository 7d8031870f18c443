"""Provenance of an adapter for the manifests, the `Started` record, and warnings at the start."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from app.domain.artifacts.engines import class_features, compatibility
from app.domain.jobs.events import Started
from app.domain.jobs.spec import QuantizationSpec, TrainerSpec
from app.system.host import multiplies_fast
from worker.trainer.distributed import parallel
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.device import device_name, dtype_name, float32_request
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.snapshot import LoadedSnapshot
from worker.trainer.training.state import Run

PACKAGES = ("tunery", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")


def provenance_of(spec: TrainerSpec, base: FrozenBase) -> dict[str, Any]:
    """Return the provenance for the manifests: base, data, configuration, device, versions."""
    run_spec, quantization = spec.run, spec.quantization
    parent = {"model": run_spec.start_adapter_name, "manifest_sha256": run_spec.start_adapter_sha256}
    architectures = base.model.config.architectures or []
    of_base = class_features(type(base.model).__name__, architectures, run_spec.lora.target_modules)
    return {
        "base_model": {"name": spec.base.name, "manifest_sha256": spec.base.manifest_sha256}
        | ({"alias": spec.base.alias} if spec.base.alias else {}),
        "method": run_spec.method,
        "training_file_sha256": run_spec.training_file_sha256,
        "validation_file_sha256": run_spec.validation_file_sha256,
        **({"file_origins": run_spec.file_origins} if run_spec.file_origins else {}),
        **run_spec.model_dump(include={"chat_template_kwargs"}),
        "continued_from": parent if run_spec.start_adapter else None,
        "lora": run_spec.lora.model_dump(mode="json"),
        "compatibility": compatibility(run_spec.lora, run_spec.run_id, of_base).model_dump(mode="json"),
        "quantization": quantization.model_dump(mode="json") | {"compute_dtype": dtype_name(base.compute_dtype)}
        if quantization
        else None,
        "hyperparameters": run_spec.hyperparameters.model_dump(mode="json"),
        "seed": run_spec.seed,
        "device": device_name(base.device),
        "versions": versions(),
    }


def started(run: Run, base: FrozenBase) -> Started:
    """Return the record of the start of the training."""
    return Started(
        run_id=run.id,
        device=device_name(base.device),
        compute_dtype=dtype_name(base.compute_dtype),
        threads=torch.get_num_threads(),
        trainable_parameters=sum(parameter.numel() for parameter in run.parameters),
        frozen_parameters=base.frozen_parameters,
        base_bytes=base.stored_bytes,
        examples=run.schedule.examples,
        tokens_per_epoch=run.dataset.tokens,
        labelled_tokens_per_epoch=run.dataset.labelled_tokens,
        total_steps=run.schedule.total_steps,
        start_step=run.step,
        versions=versions(),
        margins=base.margins,
    )


def warn_of_differences(run: Run, snapshot: LoadedSnapshot, base: FrozenBase, emit: RecordWriter) -> None:
    """Warn if versions, device or the number of processes have changed: then the result may differ in its bits."""
    saved = {**snapshot.versions, "device": snapshot.plan.device, "processes": snapshot.world_size}
    current = {**versions(), "device": device_name(base.device), "processes": parallel.world_size()}
    changes = [
        f"{name} {saved.get(name)} -> {current[name]}" for name in sorted(current) if saved.get(name) != current[name]
    ]
    if changes:
        has_other_device = snapshot.plan.device.partition(" ")[0] != base.device.type  # "cuda (NVIDIA L4)"
        has_other_masks = run.adapter.dropout and (has_other_device or saved["processes"] != current["processes"])
        effect = "dropout masks differ" if has_other_masks else "the result is equal within rounding, not to the bit"
        text = f"Resuming from {snapshot.name} with {', '.join(changes)}: {effect}."
        emit.message(text, "warn")


def warn_of_slow_dtype(
    dtype: torch.dtype, quantization: QuantizationSpec | None, device: torch.device, emit: RecordWriter
) -> None:
    """Warn if a requested dtype is slow on this processor; it is used nevertheless."""
    if device.type != "cpu" or multiplies_fast(dtype_name(dtype)):
        return
    text = (
        f"This processor has no instructions for {dtype_name(dtype)}: a matrix product takes 5 to 90 times as long as "
        f"in float32. To train faster on this worker, set {float32_request(quantization)}."
    )
    emit.message(text, "warn")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the result."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:  # tunery itself, run from its source tree
            continue
    return installed
