"""The identity of a run: the values that must be the same when it resumes from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.domain.jobs.layer_patterns import PatternError, expand_patterns
from app.domain.jobs.spec import BaseSpec, Frozen, Hyperparameters, LayerPatterns, LoraSpec, QuantizationSpec, RunSpec
from app.system.artifact_directory import sha256_file
from app.system.model_files import linear_layers
from worker.trainer.checkpoint.checkpoint import TOKENIZER_FILES
from worker.trainer.distributed import parallel

WORLD_SIZE = "world_size"  # may differ; it is in the identity because earlier releases compare it


def identity_of(run: RunSpec, base: BaseSpec, quantization: QuantizationSpec | None) -> dict[str, Any]:
    """Return the identity under dotted names: base, tokenizer, chat template, data, and the complete configuration."""
    return dict(
        _flatten(
            {
                "base_model": {"name": base.name, "manifest_sha256": base.manifest_sha256},
                "quantization": quantization.model_dump() if quantization else None,
                "lora": run.lora.model_dump(),
                "start_adapter_sha256": run.start_adapter_sha256,
                "hyperparameters": run.hyperparameters.model_dump(),
                "seed": run.seed,
                "training_file_sha256": run.training_file_sha256,
                "validation_file_sha256": run.validation_file_sha256,
                "tokenizer_sha256": _tokenizer_digests(base.directory),
                WORLD_SIZE: parallel.world_size(),
            }
        )
    )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], base_directory: Path) -> Iterator[str]:
    """Describe each difference between the identity in a snapshot and that of the current run."""
    saved = _with_layer_patterns(_defaults() | dict(saved), base_directory)
    for name in sorted((saved.keys() | current.keys()) - {WORLD_SIZE}):
        if saved.get(name) != current.get(name):
            yield f"{name} was {saved.get(name)!r} and is {current.get(name)!r}"


def _tokenizer_digests(directory: Path) -> dict[str, str]:
    """Hash the tokenizer's files. The base's manifest covers them as well, but here a difference names the file."""
    return {name: sha256_file(directory / name) for name in TOKENIZER_FILES if (directory / name).is_file()}


def _defaults() -> dict[str, Any]:
    """Return the values of parameters that did not exist yet when an older snapshot was written."""
    models: dict[str, type[Frozen]] = {"lora": LoraSpec, "hyperparameters": Hyperparameters}
    return dict(
        _flatten(
            {
                section: {name: field.default for name, field in model.model_fields.items() if not field.is_required()}
                for section, model in models.items()
            }
        )
    )


def _with_layer_patterns(identity: dict[str, Any], base_directory: Path) -> dict[str, Any]:
    """Match the rank and alpha patterns with the layers: older snapshots have the patterns of the request instead."""
    patterns = {name: _strip_prefix(f"lora.{name}.", identity) for name in LayerPatterns.model_fields}
    if not any(patterns.values()):
        return identity
    lora = {name: identity[f"lora.{name}"] for name in ("r", "alpha", "target_modules")}
    try:
        matched = expand_patterns(LoraSpec.model_validate(lora | patterns), linear_layers(base_directory))
    except PatternError:
        return identity  # `differences` then reports them
    unmatched = {f"lora.{name}.{key}" for name, keys in patterns.items() for key in keys}
    others = {name: value for name, value in identity.items() if name not in unmatched}
    return others | dict(_flatten({"lora": {name: getattr(matched, name) for name in patterns}}))


def _strip_prefix(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values whose names have the prefix, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dictionaries with their dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key)
    else:
        yield name, list(value) if isinstance(value, tuple) else value
