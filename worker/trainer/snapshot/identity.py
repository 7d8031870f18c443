"""What must be the same when a run goes on from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.domain.jobs.layer_patterns import PatternError, by_layer
from app.domain.jobs.spec import BaseSpec, Frozen, Hyperparameters, LayerPatterns, LoraSpec, QuantizationSpec, RunSpec
from app.system.artifact_directory import sha256_file
from app.system.model_files import linear_layers
from worker.trainer.checkpoint.checkpoint import TOKENIZER_FILES
from worker.trainer.distributed import parallel


def identity_of(run: RunSpec, base: BaseSpec, quantization: QuantizationSpec | None) -> dict[str, Any]:
    """Everything that must be the same when a run goes on, as dotted names: the base, its tokenizer and chat template,
    the data, the whole configuration."""
    return dict(
        _dotted(
            {
                "base_model": {"name": base.name, "manifest_sha256": base.manifest_sha256},
                "quantization": quantization.model_dump() if quantization else None,
                "lora": run.lora.model_dump(),
                "start_adapter_sha256": run.start_adapter_sha256,
                "hyperparameters": run.hyperparameters.model_dump(),
                "seed": run.seed,
                "training_file_sha256": run.training_file_sha256,
                "validation_file_sha256": run.validation_file_sha256,
                "tokenizer_sha256": _tokenizer(base.directory),
                "world_size": parallel.world_size(),
            }
        )
    )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], base_directory: Path) -> Iterator[str]:
    """Each value that a snapshot's identity and a run's do not share, in words."""
    then = _by_layer(_defaults() | dict(then), base_directory)
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield f"{name} was {then.get(name)!r} and is {now.get(name)!r}"


def _tokenizer(directory: Path) -> dict[str, str]:
    """Hash the tokenizer's files: part of the base's manifest, too; apart, so that a difference names the file."""
    return {name: sha256_file(directory / name) for name in TOKENIZER_FILES if (directory / name).is_file()}


def _defaults() -> dict[str, Any]:
    """What a snapshot means that was written before one of these could be chosen."""
    models: dict[str, type[Frozen]] = {"lora": LoraSpec, "hyperparameters": Hyperparameters}
    return dict(
        _dotted(
            {
                section: {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
                for section, model in models.items()
            }
        )
    )


def _by_layer(identity: dict[str, Any], base_directory: Path) -> dict[str, Any]:
    """With patterns by single layers, which snapshots of before patterns were matched at creation have as given."""
    patterns = {name: _below(f"lora.{name}.", identity) for name in LayerPatterns.model_fields}
    if not any(patterns.values()):
        return identity
    lora = {name: identity[f"lora.{name}"] for name in ("r", "alpha", "target_modules")}
    try:
        matched = by_layer(LoraSpec.model_validate(lora | patterns), linear_layers(base_directory))
    except PatternError:
        return identity  # then they differ
    given = {f"lora.{name}.{key}" for name, keys in patterns.items() for key in keys}
    rest = {name: value for name, value in identity.items() if name not in given}
    return rest | dict(_dotted({"lora": {name: getattr(matched, name) for name in patterns}}))


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _dotted(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _dotted(inner, f"{name}.{key}" if name else key)
    else:
        yield name, list(value) if isinstance(value, tuple) else value
