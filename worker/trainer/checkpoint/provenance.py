"""Provenance of an adapter for the manifests, the `Started` record, and warnings at the start."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from app.domain.jobs.events import Started
from app.domain.jobs.spec import RunSpec, TrainerSpec
from worker.trainer.model.base_model import Base
from worker.trainer.records import RecordWriter
from worker.trainer.runtime.device import device_name, dtype_name, times_float32, with_compute_dtype
from worker.trainer.snapshot.snapshot import Snapshot
from worker.trainer.state import Run

PACKAGES = ("tunery", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")
SLOW = 1.5  # times float32: more than a busy neighbour makes of the usual 0.5


def provenance_of(spec: TrainerSpec, base: Base) -> dict[str, Any]:
    run_spec, quantization = spec.run, with_compute_dtype(spec, dtype_name(base.compute_dtype)).quantization
    return {
        "base_model": {"name": spec.base.name, "manifest_sha256": spec.base.manifest_sha256},
        "method": run_spec.method,
        "training_file_sha256": run_spec.training_file_sha256,
        "validation_file_sha256": run_spec.validation_file_sha256,
        "continued_from": _ancestor(run_spec),
        "lora": run_spec.lora.model_dump(mode="json"),
        "quantization": quantization.model_dump(mode="json") if quantization else None,
        "hyperparameters": run_spec.hyperparameters.model_dump(mode="json"),
        "seed": run_spec.seed,
        "device": device_name(base.device),
        "versions": versions(),
    }


def _ancestor(run_spec: RunSpec) -> dict[str, Any] | None:
    if run_spec.start_adapter is None:
        return None
    return {"model": run_spec.start_adapter_name, "manifest_sha256": run_spec.start_adapter_sha256}


def started(run: Run, base: Base) -> Started:
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
    )


def warn_of_differences(run: Run, snapshot: Snapshot, base: Base, emit: RecordWriter) -> None:
    """Resumed on another machine or after an upgrade: allowed, but no longer equal to the bit."""
    then = {**snapshot.versions, "device": snapshot.plan.device}
    now = {**versions(), "device": device_name(base.device)}
    changed = [f"{name} {then.get(name)} -> {now.get(name)}" for name in sorted(now) if then.get(name) != now[name]]
    if changed:
        draws_anew = run.adapter.dropout and _kind_of(then["device"]) != _kind_of(now["device"])
        how = "with other dropout masks" if draws_anew else "equal within rounding, not to the bit"
        text = f"Going on from {snapshot.name} with {', '.join(changed)}: {how}."
        emit.message(text, "warn")


def _kind_of(device: str) -> str:
    return device.partition(" ")[0]


def warn_of_slow_dtype(dtype: torch.dtype, device: torch.device, emit: RecordWriter) -> None:
    """The requested dtype is used, but the user may not know this processor."""
    if device.type == "cuda" or dtype == torch.float32 or (ratio := times_float32(dtype, device)) < SLOW:
        return
    text = (
        f"This processor has no instructions for {dtype_name(dtype)}: a matrix product takes {ratio:.1f} times as long "
        'as float32. Ask for quantization {"compute_dtype": "float32"} to train faster here.'
    )
    emit.message(text, "warn")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tunery itself, run from its source tree
            continue
    return found
