"""What a run says of itself: where its adapter comes from, what it starts with, and what is not as one might think."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from app.domain.events import Message, Started
from app.domain.spec import RunSpec, TrainerSpec
from worker.trainer.device import device_name, dtype_name, times_float32, with_compute_dtype
from worker.trainer.emit import Ledger
from worker.trainer.model import Base
from worker.trainer.snapshot import Snapshot
from worker.trainer.state import Run

PACKAGES = ("tunery", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "tokenizers")
SLOW = 1.5  # times float32: more than a busy neighbour makes of the usual 0.5


def facts_of(spec: TrainerSpec, run_spec: RunSpec, base: Base) -> dict[str, Any]:
    quantization = with_compute_dtype(spec, base.compute_dtype).quantization
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
        examples=run.plan.examples,
        tokens_per_epoch=run.corpus.tokens,
        labelled_tokens_per_epoch=run.corpus.labelled_tokens,
        total_steps=run.plan.total_steps,
        start_step=run.step,
        versions=versions(),
    )


def warn_of_differences(run: Run, snapshot: Snapshot, base: Base, say: Ledger) -> None:
    """Resumed on another machine or after an upgrade: allowed, but no longer equal to the bit, and said so."""
    then = {**snapshot.versions, "device": snapshot.choices.device}
    now = {**versions(), "device": device_name(base.device)}
    changed = [f"{name} {then.get(name)} -> {now.get(name)}" for name in sorted(now) if then.get(name) != now[name]]
    if changed:
        draws_anew = run.adapter.dropout and _kind_of(then["device"]) != _kind_of(now["device"])
        how = "with other dropout masks" if draws_anew else "equal within rounding, not to the bit"
        text = f"Going on from {snapshot.name} with {', '.join(changed)}: {how}."
        say(Message(run_id=run.id, level="warn", message=text))


def _kind_of(device: str) -> str:
    return device.partition(" ")[0]


def warn_of_slow_dtype(spec: TrainerSpec, dtype: torch.dtype, device: torch.device, say: Ledger) -> None:
    """What was asked for is what is computed; but who asked may not know this processor."""
    if device.type == "cuda" or dtype == torch.float32 or (ratio := times_float32(dtype, device)) < SLOW:
        return
    text = (
        f"This processor has no instructions for {dtype_name(dtype)}: a matrix product takes {ratio:.1f} times as long "
        'as float32. Ask for quantization {"compute_dtype": "float32"} to train faster here.'
    )
    for each in spec.runs:
        if each.run_id not in say.endings:
            say(Message(run_id=each.run_id, level="warn", message=text))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tunery itself, run from its source tree
            continue
    return found
