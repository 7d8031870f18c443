"""A job's spec as a create request, and a client's overrides merged into that.

Every resolved number is written out, so a clone trains the same, whatever "auto" would be today. An override may stand
in any place that a create body has, under any alias: the original's value of that parameter is removed first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from app.domain.jobs.create_job import CreateJob, create_body, parse_create
from app.domain.jobs.request_parameters import METHOD_OF, Given, collect, method_of
from app.domain.jobs.spec import JobSpec, Method
from app.errors import BadRequest

Json = dict[str, Any]


def parse_clone(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """The request of a clone: `original`, a create request, with any keys of a create body. Returns as `parse_create`.

    Raises BadRequest where nothing is usable.
    """
    required = {name: original[name] for name in ("model", "training_file")}
    parsed, problems = parse_create(required | dict(overrides))
    given = {key: value for key, value in parsed.model_dump(exclude_unset=True).items() if key in overrides}
    parsed, more = parse_create(apply_overrides(original, given))
    return parsed, [*problems, *more]


def create_request(spec: JobSpec, **columns: Any) -> Json:
    """The create request of a spec and other values, with the absolute learning rate: the base model's rate may have
    changed since.
    """
    plain = spec.model_dump(mode="json")
    lora, quantization, hyperparameters = plain["lora"], plain["quantization"], plain["hyperparameters"]
    if hyperparameters["learning_rate"] is not None:
        hyperparameters.pop("learning_rate_multiplier")
    if spec.dtype_is_free:
        quantization.pop("compute_dtype")  # the original request did not set it
    settings = {name: plain[name] for name in ("method", "sample_prompts", "evaluation", "seed")} | columns
    settings["model"] = spec.continued_from or spec.base_model  # not its alias, which may name another model today
    settings |= hyperparameters | {f"lora.{name}": value for name, value in lora.items()}
    settings |= {f"quantization.{name}": value for name, value in (quantization or {}).items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    return create_body(settings | ({} if quantization else {"quantization": None}))  # null means a 16-bit base


def apply_overrides(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """`body` with `overrides` of a valid shape: objects are merged key by key, other values are replaced."""
    own: Json = copy.deepcopy(dict(body))
    old: Method = method_of(own) or "supervised"
    overrides = _with_method(overrides, old)
    new = method_of(overrides)
    request = collect(overrides)  # its problems are found again in the whole request
    if new is not None and new != old:
        _change_method(own, old, new)
    for name, given in request.given.items():
        _drop_overridden(own, new or old, name, given)
    return _merged(own, overrides)


def _with_method(overrides: Mapping[str, Any], old: Method) -> Json:
    """Hyperparameters stand under the name of their method; an override need not repeat the method's type."""
    method = overrides.get("method")
    return {**overrides, "method": {"type": old, **(method or {})}}


def _change_method(body: Json, old: Method, new: Method) -> None:
    """Drop what belongs to the old method: its own hyperparameters, and the rate, which is resolved again."""
    hyperparameters = body["method"][old]["hyperparameters"]
    for name in (*METHOD_OF, "learning_rate", "learning_rate_multiplier"):
        hyperparameters.pop(name, None)
    body["method"] = {"type": new, new: {"hyperparameters": hyperparameters}}


def _drop_overridden(body: Json, method: Method, name: str, given: Given) -> None:
    """Remove the original's value of one parameter, and what the new value would contradict."""
    hyperparameters = body["method"][method]["hyperparameters"]
    head, _, key = name.partition(".")
    if name == "quantization":
        if not given.value or body.get("quantization") is None:
            body.pop("quantization", None)
    elif head == "quantization":
        _drop_overridden_quantization(body, key, given.value)
    elif head == "lora":
        body["lora"].pop(key, None)
    else:
        hyperparameters.pop(name, None)
    if name == "learning_rate_multiplier":
        hyperparameters.pop("learning_rate", None)


def _drop_overridden_quantization(body: Json, key: str, value: Any) -> None:
    had = body.get("quantization") or {}
    if key == "bits" and value != had.get("bits"):
        had.pop("type", None)  # both belong to the previous bits
        had.pop("double_quant", None)
    had.pop(key, None)


def _merged(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    merged = dict(body)
    for key, value in overrides.items():
        had = merged.get(key)
        merged[key] = _merged(had, value) if isinstance(had, dict) and isinstance(value, Mapping) else value
    return merged
