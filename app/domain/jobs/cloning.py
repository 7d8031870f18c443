"""A job's spec as the create request that asks for it, and a client's changes laid over that.

Every resolved number is written out, so a clone trains the same, whatever "auto" would be today. A change may come in
any of the places that a create body knows: what it names, under whatever alias, leaves the original's place first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from app.domain.jobs.parameters import Knob
from app.domain.jobs.request_aliases import gather, method_of
from app.domain.jobs.spec import JobSpec, Method

Json = dict[str, Any]


def request_of(
    spec: JobSpec, training_file: str, validation_file: str | None, suffix: str | None, metadata: Json | None
) -> Json:
    """The rate is absolute: its multiplier would be of what the base model's rate is today."""
    plain = spec.model_dump(mode="json")
    knobs = plain["hyperparameters"]
    if knobs["learning_rate"] is not None:
        knobs.pop("learning_rate_multiplier")
    if spec.dtype_is_free:
        plain["quantization"].pop("compute_dtype")  # as nobody asked for it then, nobody does now
    body = {
        "model": spec.continued_from or spec.base_model,
        "training_file": training_file,
        "validation_file": validation_file,
        "method": {"type": spec.method, spec.method: {"hyperparameters": _given(knobs)}},
        "lora": _given(plain["lora"]),
        "quantization": _given(plain["quantization"]) if plain["quantization"] else None,
        "sample_prompts": plain["sample_prompts"],
        "seed": spec.seed,
        "suffix": suffix,
        "metadata": metadata,
    }
    kept_null = {"quantization"}  # there null has a meaning: a 16-bit base
    return {key: value for key, value in body.items() if value is not None or key in kept_null}


def overridden(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """`overrides`, of the right shape, laid over `body`: objects key by key, everything else instead of what was."""
    own: Json = copy.deepcopy(dict(body))
    old: Method = method_of(own) or "supervised"
    overrides = _with_method(overrides, old)
    new = method_of(overrides)
    knobs = gather(overrides).values  # its problems are found again in the whole request
    if new is not None and new != old:
        _change_method(own, old, new)
    for name, knob in knobs.items():
        _make_way(own, new or old, name, knob)
    return _merged(own, overrides)


def _with_method(overrides: Mapping[str, Any], old: Method) -> Json:
    """Knobs are read by the method they are for, and a change of a knob need not repeat it."""
    method = overrides.get("method")
    return {**overrides, "method": {"type": old, **(method or {})}}


def _change_method(body: Json, old: Method, new: Method) -> None:
    """Another method has other knobs, and a rate of its own: that is decided anew."""
    knobs = body["method"][old]["hyperparameters"]
    for name in ("beta", "learning_rate", "learning_rate_multiplier"):
        knobs.pop(name, None)
    body["method"] = {"type": new, new: {"hyperparameters": knobs}}


def _make_way(body: Json, method: Method, name: str, knob: Knob) -> None:
    """Take the original's value of one knob away, and what a new one would contradict."""
    hyperparameters = body["method"][method]["hyperparameters"]
    head, _, key = name.partition(".")
    if name == "quantization":
        if not knob.value or body.get("quantization") is None:
            body.pop("quantization", None)
    elif head == "quantization":
        _make_way_for_quantization(body, key, knob.value)
    elif head == "lora":
        body["lora"].pop(key, None)
    else:
        hyperparameters.pop(name, None)
    if name == "learning_rate_multiplier":
        hyperparameters.pop("learning_rate", None)


def _make_way_for_quantization(body: Json, key: str, value: Any) -> None:
    had = body.get("quantization") or {}
    if key == "bits" and value != had.get("bits"):
        had.pop("type", None)  # both belong to the old width
        had.pop("double_quant", None)
    had.pop(key, None)


def _merged(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    merged = dict(body)
    for key, value in overrides.items():
        had = merged.get(key)
        merged[key] = _merged(had, value) if isinstance(had, dict) and isinstance(value, Mapping) else value
    return merged


def _given(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}
