"""A job's spec as the settings of a create request, and a client's overrides merged into them.

Every resolved number is written out, so a clone trains the same, whatever "auto" would be today. An override may stand
in any place that a create body has, under any alias: the original's value of that parameter is removed first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.domain.jobs.create_job import CreateJob, create_body, parse_create, without
from app.domain.jobs.request_parameters import METHOD_OF, collect, method_of
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest

Json = dict[str, Any]


def parse_clone(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """The request of a clone: the settings of the original, with any keys of a create body. Returns as `parse_create`.

    Raises BadRequest where nothing is usable.
    """
    required = {name: original[name] for name in ("model", "training_file")}
    parsed, problems = parse_create(required | dict(overrides))
    given = {key: value for key, value in parsed.model_dump(exclude_unset=True).items() if key in overrides}
    parsed, more = parse_create(apply_overrides(original, given))
    return parsed, [*problems, *more]


def settings_of_spec(spec: JobSpec, **columns: Any) -> Json:
    """The settings of a spec and other values, with the absolute learning rate: the base model's rate may have changed
    since.
    """
    plain = spec.model_dump(mode="json")
    quantization, hyperparameters = plain["quantization"], plain["hyperparameters"]
    if hyperparameters["learning_rate"] is not None:
        hyperparameters.pop("learning_rate_multiplier")
    if spec.dtype_is_free:
        quantization.pop("compute_dtype")  # the original request did not set it
    settings = {name: plain[name] for name in ("method", "sample_prompts", "evaluation", "seed")} | columns
    settings["model"] = spec.continued_from or spec.base_model  # not its alias, which may name another model today
    settings |= hyperparameters | {f"lora.{name}": value for name, value in plain["lora"].items()}
    settings |= {f"quantization.{name}": value for name, value in (quantization or {}).items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    return settings if quantization else settings | {"quantization": None}  # null means a 16-bit base


def apply_overrides(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """The create body of settings with `overrides` of a valid shape: objects are merged key by key, other values are
    replaced.
    """
    settings, old = dict(original), original["method"]
    # Hyperparameters stand under the name of their method; an override need not repeat the method's type.
    overrides = {**overrides, "method": {"type": old, **(overrides.get("method") or {})}}
    new = method_of(overrides)
    dropped = []
    if new is not None and new != old:
        settings["method"] = new
        dropped = [*METHOD_OF, "learning_rate", "learning_rate_multiplier"]  # the rate is resolved again
    for name, given in collect(overrides).given.items():  # its problems are found again in the whole request
        dropped.append(name)
        if name == "learning_rate_multiplier":
            dropped.append("learning_rate")
        elif name == "quantization" and (not given.value or "quantization" in settings):
            settings = without(settings, name)
        elif name == "quantization.bits" and given.value != settings.get(name):
            dropped += ["quantization.type", "quantization.double_quant"]  # both belong to the previous bits
    return _merged(create_body({name: value for name, value in settings.items() if name not in dropped}), overrides)


def _merged(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    merged = dict(body)
    for key, value in overrides.items():
        had = merged.get(key)
        merged[key] = _merged(had, value) if isinstance(had, dict) and isinstance(value, Mapping) else value
    return merged
