"""Where a request may hide its knobs: OpenAI's places, ours, and the aliases that other services taught people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, as_json, unquoted
from app.domain.jobs.parameters import AUTO, Knobs
from app.domain.jobs.spec import Method
from app.errors import BadRequest, UnknownParameter

ALL_LINEAR = "all-linear"
HYPERPARAMETERS = {
    name: name
    for name in (
        "n_epochs", "batch_size", "learning_rate_multiplier", "learning_rate", "warmup_ratio", "weight_decay",
        "max_grad_norm", "lr_scheduler_type", "context_length", "packing", "max_steps",
        "eval_steps", "early_stopping", "promote_best", "beta",
    )
} | {"load_best_model_at_end": "promote_best"}  # fmt: skip
LORA_ALIASES = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_trainable_modules": "target_modules",
}
LORA_KEYS = {
    "r": "r", "rank": "r", "alpha": "alpha", "lora_alpha": "alpha", "dropout": "dropout", "lora_dropout": "dropout",
    "target_modules": "target_modules", "use_rslora": "use_rslora", "use_dora": "use_dora", "bias": "bias",
    "init": "init", "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern",
    "modules_to_save": "modules_to_save",
}  # fmt: skip
# PEFT's own words for what starts from changed base weights: who sends them is told more than that they are unknown.
INITIALISATIONS = ("init_lora_weights", "loftq_config", "eva_config", "corda_config")
NO_INITIALISATION = "PiSSA, LoftQ and other initialisations start from changed base weights, which are not offered"
NAME_LISTS = ("target_modules", "modules_to_save")  # also taken as one text with commas
KNOBS = (*HYPERPARAMETERS, *LORA_ALIASES, "lora", "quantization", "load_in_4bit")  # what hyperparameters may hold
QUANTIZATION_KEYS = ("bits", "type", "double_quant", "compute_dtype")


METHODS: tuple[Method, ...] = ("supervised", "dpo")
OPENAIS_METHODS = (*METHODS, "reinforcement")  # its client writes those that are not meant as null
OF_METHOD: dict[str, Method] = {"beta": "dpo"}  # knobs that mean nothing elsewhere


def gather(body: Mapping[str, Any]) -> Knobs:
    """Every knob of a create body; which of them its method does not have is among the problems."""
    knobs = Knobs()
    for path, hyperparameters in _hyperparameter_objects(body, knobs):
        for key, value in hyperparameters.items():
            _gather_one(knobs, f"{path}.{key}", key, value)
    if "lora" in body:
        _gather_lora(knobs, body["lora"], "lora")
    if "quantization" in body:
        _gather_quantization(knobs, body["quantization"], "quantization")
    _refuse_knobs_of_other_methods(knobs, method_of(body))
    return knobs


def method_of(body: Mapping[str, Any]) -> Method | None:
    """None for one that is not offered here."""
    kind = (body.get("method") or {}).get("type") or "supervised"
    return next((method for method in METHODS if method == kind), None)


def _hyperparameter_objects(body: Mapping[str, Any], knobs: Knobs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method, kind = body.get("method") or {}, method_of(body)
    if kind is None:
        seen, known = as_json(method["type"]), " and ".join(map(as_json, METHODS))
        text = f"method.type {seen} is not offered here; allowed are {known}"
        knobs.problems.append(BadRequest(text, "method.type", "unsupported_value"))
        return
    for key in sorted(method.keys() - {"type", kind}):
        if key not in OPENAIS_METHODS:
            knobs.problems.append(_unknown(f"method.{key}", ("type", kind)))
        elif method[key] is not None:
            owner, asked = as_json(key), as_json(kind)
            text = f"method.{key} belongs to the type {owner}, but method.type is {asked}; give only method.{kind}"
            knobs.problems.append(UnknownParameter(text, f"method.{key}"))
    chosen = method.get(kind) or {}
    for key in chosen.keys() - {"hyperparameters"}:
        knobs.problems.append(_unknown(f"method.{kind}.{key}", ("hyperparameters",)))
    yield f"method.{kind}.hyperparameters", chosen.get("hyperparameters") or {}
    yield "hyperparameters", body.get("hyperparameters") or {}


def _refuse_knobs_of_other_methods(knobs: Knobs, method: Method | None) -> None:
    for name, owner in OF_METHOD.items():
        knob = knobs.values.get(name)
        if knob is not None and knob.value is not None and method not in (owner, None):
            text = f"belongs to the method {as_json(owner)}, but this job's method is {as_json(method)}; leave it out"
            knobs.refuse(name, text, "unsupported_value")


def _gather_one(knobs: Knobs, path: str, key: str, value: Any) -> None:
    if key in HYPERPARAMETERS:
        knobs.give(HYPERPARAMETERS[key], value, path)
    elif key in LORA_ALIASES:
        _give_lora(knobs, LORA_ALIASES[key], value, path)
    elif key == "lora":
        _gather_lora(knobs, value, path)
    elif key == "quantization":
        _gather_quantization(knobs, value, path)
    elif key == "load_in_4bit":
        _gather_load_in_4bit(knobs, value, path)
    else:
        knobs.problems.append(_unknown(path, KNOBS))


def _gather_lora(knobs: Knobs, value: Any, path: str) -> None:
    if value is None or value is True:
        return
    if value is False:
        text = f"{path} = false asks for full fine-tuning; Tunery trains adapters only"
        knobs.problems.append(BadRequest(text, path, "unsupported_value"))
        return
    if not isinstance(value, Mapping):
        text = f'{path} must be an object such as {{"r": 16}}, not {as_json(value)}'
        knobs.problems.append(BadRequest(text, path, "invalid_type"))
        return
    for key, item in value.items():
        if key in LORA_KEYS:
            _give_lora(knobs, LORA_KEYS[key], item, f"{path}.{key}")
        elif key in INITIALISATIONS:
            knobs.problems.append(UnknownParameter(f"{path}.{key}: {NO_INITIALISATION}; leave it out", f"{path}.{key}"))
        else:
            knobs.problems.append(_unknown(f"{path}.{key}", tuple(LORA_KEYS)))


def _give_lora(knobs: Knobs, name: str, value: Any, path: str) -> None:
    knobs.give(f"lora.{name}", _split_names(value) if name in NAME_LISTS else value, path)


def _gather_quantization(knobs: Knobs, value: Any, path: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        example = '{"bits": 4, "type": "nf4"}'
        text = f"{path} must be null (16-bit LoRA) or an object such as {example}, not {as_json(value)}"
        knobs.problems.append(BadRequest(text, path, "invalid_type"))
        return
    knobs.give("quantization", value is not None, path)
    for key, item in (value or {}).items():
        if key in QUANTIZATION_KEYS:
            knobs.give(f"quantization.{key}", item, f"{path}.{key}")
        else:
            knobs.problems.append(_unknown(f"{path}.{key}", QUANTIZATION_KEYS))


def _gather_load_in_4bit(knobs: Knobs, value: Any, path: str) -> None:
    if isinstance(value, bool):
        knobs.give("quantization", value, path)
    else:
        knobs.problems.append(BadRequest(f"{path} must be true or false, not {as_json(value)}", path, "invalid_type"))


def _split_names(value: Any) -> Any:
    if isinstance(value, str) and value not in (ALL_LINEAR, AUTO):
        return [name.strip() for name in value.split(",")]
    return value


def _unknown(path: str, known: tuple[str, ...]) -> UnknownParameter:
    where = unquoted(path, MAX_PATH_CHARACTERS)
    return UnknownParameter(f"unknown parameter {where}; known here: {_listed(known)}", where)


@cache
def _listed(names: tuple[str, ...]) -> str:
    """Kept, as a body may have a hundred thousand unknown keys."""
    return ", ".join(sorted(set(names)))
