"""The form of a new job as data: its values, the request body that follows from them, and prefilled values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from app.web.pages.jobs import wording

Json = dict[str, Any]
Values = dict[str, str]

HYPERPARAMETERS: dict[str, Callable[[str], Any]] = {
    "n_epochs": int,
    "batch_size": int,
    "learning_rate": float,
    "context_length": int,
    "eval_steps": int,
}
LORA: dict[str, Callable[[str], Any]] = {"r": int, "alpha": float, "dropout": float}
SHOWN_HYPERPARAMETERS = frozenset(HYPERPARAMETERS)
TEXTS = ("model", "training_file", "validation_file", "suffix")
MIN_CONTEXT_LENGTH = 128
MIN_RANK = 4
REPAIRED_ERRORS = (
    "out_of_memory",
    "non_finite_loss",
    "invalid_training_file",
    "invalid_n_examples",
    "invalid_validation_file",
    "invalid_evaluation_file",
)
WITHOUT_QUANTIZATION, AS_ORIGINAL = "16", "original"
DEFAULT_QUANTIZATION = {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


class FieldError(Exception):
    """The value of one field is not usable."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(frozen=True)
class Prefilled:
    values: Values
    changes: list[str] = field(default_factory=list)  # what a repair changed, in words
    advice: str = ""  # what the user should change, as no repair does
    kept: Json = field(default_factory=dict)  # the part of a clone's request that no field of the form has


def request_body(values: Mapping[str, str], kept: Json | None = None) -> Json:
    """The body of a create call. Empty fields are left out, so that the server chooses. Raises FieldError."""
    body: Json = {name: values[name] for name in TEXTS if values.get(name)}
    if not body.get("training_file"):
        raise FieldError("training_file", "Choose a training file.")
    method = values.get("method") or "supervised"
    hyperparameters = _numbers(values, HYPERPARAMETERS) | _more_hyperparameters(values)
    if hyperparameters or method != "supervised":
        body["method"] = {"type": method, method: {"hyperparameters": hyperparameters}}
    if lora := _numbers(values, LORA):
        body["lora"] = lora
    if values.get("quantization") == WITHOUT_QUANTIZATION:
        body["quantization"] = None
    if values.get("seed"):
        body["seed"] = _number(values, "seed", int)
    if values.get("priority"):
        body["priority"] = _number(values, "priority", int)
    prompts = [line.strip() for line in values.get("sample_prompts", "").split("\n") if line.strip()]
    if prompts:
        body["sample_prompts"] = prompts
    kept = dict(kept or {})
    if values.get("quantization") != AS_ORIGINAL:
        kept.pop("quantization", None)
    if "lora" in kept:
        body["lora"] = kept["lora"] | body.get("lora", {})
    return kept | body


def from_job(job: Json) -> Prefilled:
    """A clone: every setting of the job as it was resolved."""
    method = job["method"]["type"]
    hyperparameters = job["method"][method]["hyperparameters"]
    rest = {
        name: value
        for name, value in hyperparameters.items()
        if value is not None and name not in SHOWN_HYPERPARAMETERS and name != "learning_rate_multiplier"
    }
    values = {
        "model": job["model"],
        "training_file": job["training_file"],
        "validation_file": job["validation_file"] or "",
        "suffix": job["user_provided_suffix"] or "",
        "method": method,
        "quantization": _quantization(job["quantization"]),
        "seed": str(job["seed"]),
        "priority": str(job["priority"] or ""),
        "sample_prompts": "" if _has_line_breaks(job["sample_prompts"]) else "\n".join(job["sample_prompts"]),
        "more": json.dumps(rest, indent=1) if rest else "",
    }
    values |= {name: _text(hyperparameters.get(name)) for name in HYPERPARAMETERS}
    return Prefilled(values | {name: _text(job["lora"].get(name)) for name in LORA}, kept=_kept(job))


def _kept(job: Json) -> Json:
    """What the form has no field for. Empty values are the defaults; only an empty `deliver_to` is none."""
    request = job["request"] or {}
    lora = {name: value for name, value in job["lora"].items() if name not in LORA}
    kept = {
        "lora": {name: value for name, value in lora.items() if value and value not in ("none", "default")},
        "quantization": _without_none(job["quantization"]) if _quantization(job["quantization"]) == AS_ORIGINAL else {},
        "sample_prompts": job["sample_prompts"] if _has_line_breaks(job["sample_prompts"]) else None,
        "evaluation": request.get("evaluation"),  # the job has its result instead
        "metadata": job["metadata"],
        "worker_labels": job["worker_labels"],
        "urgent": job["urgent"],
    }
    return {name: value for name, value in kept.items() if value} | {"deliver_to": job["deliver_to"]}


def _quantization(spec: Json | None) -> str:
    if spec is None:
        return WITHOUT_QUANTIZATION
    return "4" if spec == DEFAULT_QUANTIZATION else AS_ORIGINAL


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _has_line_breaks(prompts: list[str]) -> bool:
    return any("\n" in prompt for prompt in prompts)


def repaired(job: Json) -> Prefilled:
    """The values of a failed job with the change that its error calls for."""
    error = job["error"] or {}
    prefilled, code = from_job(job), error.get("code")
    values, changes = prefilled.values, prefilled.changes
    if code == "out_of_memory":
        _repair_memory(values, changes)
    elif code == "non_finite_loss":
        rate = float(values["learning_rate"] or 0)
        if rate:
            values["learning_rate"] = f"{rate / 3:.3g}"
            changes.append(f"learning rate: {rate:g} → {values['learning_rate']}")
    elif code in ("invalid_training_file", "invalid_n_examples"):
        values["training_file"] = ""
        changes.append("training file: choose the corrected file")
    elif code == "invalid_validation_file":
        values["validation_file"] = ""
        changes.append("validation file: choose the corrected file, or none")
    elif code == "invalid_evaluation_file":
        prefilled.kept.pop("evaluation", None)
        changes.append("evaluation: left out; request it on the job's page after the training")
    if changes or not error:
        return prefilled
    return replace(prefilled, advice=" ".join(filter(None, (error["message"], wording.remedy(error)))))


def _repair_memory(values: Values, changes: list[str]) -> None:
    """Halve the context length; at its minimum, halve the rank; without quantization, use 4 bits first."""
    context, rank = int(values["context_length"] or 0), int(values["r"] or 0)
    if values["quantization"] == WITHOUT_QUANTIZATION:
        values["quantization"] = "4"
        changes.append("quantization: 16 bits → 4 bits")
    elif context >= 2 * MIN_CONTEXT_LENGTH:
        values["context_length"] = str(context // 2)
        changes.append(f"context length: {context:,} → {context // 2:,} tokens (longer examples are truncated)")
    elif rank >= 2 * MIN_RANK:
        values["r"], values["alpha"] = str(rank // 2), ""
        changes.append(f"LoRA rank: {rank} → {rank // 2}")


def _numbers(values: Mapping[str, str], parsers: Mapping[str, Callable[[str], Any]]) -> Json:
    return {name: _number(values, name, parse) for name, parse in parsers.items() if values.get(name, "").strip()}


def _number(values: Mapping[str, str], name: str, parse: Callable[[str], Any]) -> Any:
    try:
        number = parse(values[name].strip())
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        kind = "a whole number" if parse is int else "a number"
        raise FieldError(name, f"{values[name][:40]!r} is not {kind}.") from None
    return number


def _more_hyperparameters(values: Mapping[str, str]) -> Json:
    text = values.get("more", "").strip()
    if not text:
        return {}
    try:
        more = json.loads(text)
        json.dumps(more, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        raise FieldError("more", f"This is not JSON: {error}.") from None
    if not isinstance(more, dict):
        raise FieldError("more", 'Write an object such as {"warmup_ratio": 0.05}.')
    return more


def _text(value: Any) -> str:
    return "" if value is None else str(value).removesuffix(".0")
