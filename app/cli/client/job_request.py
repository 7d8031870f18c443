"""The options of `tunery jobs create` as a request's body. What is not given is absent: the server decides it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.cli.errors import UsageError

Json = dict[str, Any]
OBJECTS = ("lora", "quantization")  # of a dotted name, these are their own objects in the request


def build_body(
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
    body |= _given({"validation_file": validation_file, "suffix": suffix, "seed": seed})
    body |= _given(queue or {})
    objects = {"hyperparameters": _given(hyperparameters), "lora": _given(lora), "quantization": {}}
    _apply(settings, objects)
    if method or objects["hyperparameters"]:
        kind = method or "supervised"
        body["method"] = {"type": kind, kind: {"hyperparameters": objects["hyperparameters"]}}
    body |= {name: objects[name] for name in OBJECTS if objects[name]}
    if no_quantization:
        _refuse_contradiction(objects["quantization"])
        body["quantization"] = None
    if metadata:
        body["metadata"] = dict(_split(pair, "--metadata") for pair in metadata)
    return body


def build_changes(
    given: Json,
    hyperparameters: Json,
    lora: Json,
    no_quantization: bool,
    settings: Sequence[str],
    metadata: Sequence[str],
) -> Json:
    """What a clone is to have instead of the original's, whichever method that has."""
    objects = {"hyperparameters": _given(hyperparameters), "lora": _given(lora), "quantization": {}}
    _apply(settings, objects)
    body = _given(given) | {name: values for name, values in objects.items() if values}
    if no_quantization:
        _refuse_contradiction(objects["quantization"])
        body["quantization"] = None
    if metadata:
        body["metadata"] = dict(_split(pair, "--metadata") for pair in metadata)
    return body


def build_update(priority: int | None, metadata: Sequence[str], no_metadata: bool) -> Json:
    """What is to change of a job that there is. Raises UsageError for nothing."""
    if metadata and no_metadata:
        raise UsageError("--metadata and --no-metadata contradict each other; give one of them.")
    body = _given({"priority": priority})
    if metadata or no_metadata:
        body["metadata"] = dict(_split(pair, "--metadata") for pair in metadata) or None
    if not body:
        raise UsageError("Nothing to change: give --priority, --metadata or --no-metadata.")
    return body


def target_modules(text: str | None) -> str | list[str] | None:
    """`all-linear`, or names with commas between them."""
    if text is None or text == "all-linear":
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def _apply(settings: Sequence[str], objects: dict[str, Json]) -> None:
    """`warmup_ratio=0.1` is a hyperparameter, `lora.use_rslora=true` a key of `lora`."""
    for setting in settings:
        name, text = _split(setting, "--set")
        head, _, rest = name.partition(".")
        target, key = (head, rest) if rest and head in OBJECTS else ("hyperparameters", name)
        value = _value(text)
        if key in objects[target] and objects[target][key] != value:
            raise UsageError(f"--set {setting} contradicts {objects[target][key]!r}, which was also given for {key}.")
        objects[target][key] = value


def _split(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise UsageError(f"{option} {pair}: it takes a name and a value, such as {option} name=value.")
    return name, value


def _value(text: str) -> Any:
    """Numbers, true, false, null and lists as JSON; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _given(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_contradiction(quantization: Json) -> None:
    if quantization:
        raise UsageError("--no-quantization and --set quantization.… contradict each other; give one of them.")
