"""Request bodies of the job commands, built from their options. The server resolves what is not given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.cli.errors import UsageError

Json = dict[str, Any]
NESTED_OBJECTS = ("lora", "quantization")  # `--set lora.KEY=VALUE` sets a key of this object


def build_job_body(
    model: str,
    training_file: str,
    validation_file: str | None,
    suffix: str | None,
    seed: int | None,
    hyperparameters: Json,
    lora: Json,
    no_quantization: bool,
    settings: Sequence[str],
    metadata: Sequence[str],
    method: str | None = None,
    queue: Json | None = None,
) -> Json:
    body: Json = {"model": model, "training_file": training_file}
    body |= _without_none({"validation_file": validation_file, "suffix": suffix, "seed": seed})
    body |= _without_none(queue or {})
    objects = {"hyperparameters": _without_none(hyperparameters), "lora": _without_none(lora), "quantization": {}}
    _apply_settings(settings, objects)
    if method or objects["hyperparameters"]:
        kind = method or "supervised"
        body["method"] = {"type": kind, kind: {"hyperparameters": objects["hyperparameters"]}}
    body |= {name: objects[name] for name in NESTED_OBJECTS if objects[name]}
    if no_quantization:
        _check_no_quantization(objects["quantization"])
        body["quantization"] = None
    if metadata:
        body["metadata"] = dict(_parse_pair(pair, "--metadata") for pair in metadata)
    return body


def build_clone_body(
    given: Json,
    hyperparameters: Json,
    lora: Json,
    no_quantization: bool,
    settings: Sequence[str],
    metadata: Sequence[str],
) -> Json:
    """The settings that a clone overrides; its method is that of the original."""
    objects = {"hyperparameters": _without_none(hyperparameters), "lora": _without_none(lora), "quantization": {}}
    _apply_settings(settings, objects)
    body = _without_none(given) | {name: values for name, values in objects.items() if values}
    if no_quantization:
        _check_no_quantization(objects["quantization"])
        body["quantization"] = None
    if metadata:
        body["metadata"] = dict(_parse_pair(pair, "--metadata") for pair in metadata)
    return body


def build_update_body(priority: int | None, metadata: Sequence[str], no_metadata: bool) -> Json:
    """The changes to an existing job. Raises UsageError if there are none."""
    if metadata and no_metadata:
        raise UsageError("--metadata and --no-metadata contradict each other; give one of them.")
    body = _without_none({"priority": priority})
    if metadata or no_metadata:
        body["metadata"] = dict(_parse_pair(pair, "--metadata") for pair in metadata) or None
    if not body:
        raise UsageError("Nothing to change: give --priority, --metadata or --no-metadata.")
    return body


def target_modules(text: str | None) -> str | list[str] | None:
    """Parse `all-linear` or comma-separated module names."""
    if text is None or text == "all-linear":
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def _apply_settings(settings: Sequence[str], objects: dict[str, Json]) -> None:
    """Set `warmup_ratio=0.1` in the hyperparameters and `lora.use_rslora=true` in `lora`."""
    for setting in settings:
        name, text = _parse_pair(setting, "--set")
        head, _, rest = name.partition(".")
        target, key = (head, rest) if rest and head in NESTED_OBJECTS else ("hyperparameters", name)
        value = _parse_value(text)
        if key in objects[target] and objects[target][key] != value:
            raise UsageError(f"--set {setting} contradicts {objects[target][key]!r}, which was also given for {key}.")
        objects[target][key] = value


def _parse_pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise UsageError(f"{option} {pair} is not of the form {option} name=value.")
    return name, value


def _parse_value(text: str) -> Any:
    """Parse a JSON value such as a number, true, null or a list; any other text is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _check_no_quantization(quantization: Json) -> None:
    if quantization:
        raise UsageError("--no-quantization and --set quantization.… contradict each other; give one of them.")
