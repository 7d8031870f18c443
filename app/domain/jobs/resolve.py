"""A create request -> what will be trained: aliases become one name, "auto" becomes a number, once.

Gather every knob under its canonical name (an unknown key, or one knob given twice with different values, is an
error), check the values, fill in what is absent. All problems of a request are reported at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from app.domain.base_models.catalog import CatalogEntry
from app.domain.error_text.json_text import as_json
from app.domain.jobs import bounds
from app.domain.jobs.auto_hyperparameters import WARMUP_RATIO, auto_batch_size, auto_epochs, auto_learning_rate
from app.domain.jobs.evaluation_settings import measuring
from app.domain.jobs.lora_parameters import Ancestor, resolve_lora
from app.domain.jobs.parameters import Knobs
from app.domain.jobs.request_aliases import gather, method_of
from app.domain.jobs.spec import LINE_RULES, Hyperparameters, JobSpec, LoraSpec, Method, QuantizationSpec
from app.errors import combine_errors

MAX_SEED = 2_147_483_647
MAX_STEPS = 10_000_000
DEFAULT_BETA = 0.1  # TRL's default, and the low end of what the paper tries (0.1 to 0.5)
# DPO wants a lower rate than supervised training. Published pairs of both stages differ by 4 (OLMo 7B: 2e-6, 5e-7) to
# 40 (Zephyr 7B with QLoRA: 2e-4, 5e-6); in the middle of those, on a log scale, is a tenth.
DPO_RATE = 0.1


def resolve(
    body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int, ancestor: Ancestor | None = None
) -> JobSpec:
    """Turn a create body into a JobSpec for a training file of `n_examples` lines, on a base model or on an ancestor.

    Raises BadRequest: the first problem's `param` and code, a message that lists them all.
    """
    knobs = gather(body)
    spec = _fill_in(
        knobs, body, base_model, entry, max(1, n_examples), ancestor
    )  # also after a problem: all are told at once
    if spec is None or knobs.problems:
        raise combine_errors(knobs.problems)
    return spec


def default_rate(entry: CatalogEntry, method: Method) -> float:
    """The learning rate at multiplier 1, before the run's length and the adapter's strength are looked at."""
    return entry.learning_rate * (DPO_RATE if method == "dpo" else 1)


def _fill_in(
    knobs: Knobs,
    body: Mapping[str, Any],
    base_model: str,
    entry: CatalogEntry,
    n_examples: int,
    ancestor: Ancestor | None,
) -> JobSpec | None:
    resolved = resolve_lora(knobs, entry, ancestor)
    lora = resolved.lora if resolved else None
    quantization = _quantization(knobs)
    method = method_of(body) or "supervised"  # another one is a problem already
    has_validation_file = body.get("validation_file") is not None
    hyperparameters = _hyperparameters(knobs, entry, n_examples, lora, method, has_validation_file)
    seed = body.get("seed")
    if knobs.problems or resolved is None or hyperparameters is None:
        return None
    return JobSpec(
        base_model=base_model,
        method=method,
        line_rules=LINE_RULES,
        continued_from=ancestor.model if ancestor else None,
        lora=resolved.lora,
        layer_patterns=resolved.layer_patterns,
        quantization=quantization,
        dtype_is_free=quantization is not None and knobs.value("quantization.compute_dtype") is None,
        hyperparameters=hyperparameters,
        sample_prompts=tuple(body.get("sample_prompts") or ()),
        seed=random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed,
    )


def _quantization(knobs: Knobs) -> QuantizationSpec | None:
    wanted = knobs.values.get("quantization")
    if wanted is not None and not wanted.value:
        return None
    values: dict[str, Any] = {}
    for key, allowed in (
        ("bits", (4, 8)),
        ("type", ("nf4", "fp4")),
        ("compute_dtype", ("bfloat16", "float16", "float32")),
    ):
        value = knobs.value(f"quantization.{key}")
        if value is not None and (value not in allowed or isinstance(value, bool)):
            knobs.refuse(
                f"quantization.{key}",
                f"{as_json(value)} is not offered; allowed: {', '.join(map(str, allowed))}",
                "unsupported_value",
            )
        elif value is not None:
            values[key] = value
    if values.get("bits", 4) == 8:
        _refuse_knobs_of_4_bits(knobs)
    else:
        values["double_quant"] = knobs.flag("quantization.double_quant", True)
    return None if knobs.problems else QuantizationSpec(**values)


def _refuse_knobs_of_4_bits(knobs: Knobs) -> None:
    for name in ("quantization.type", "quantization.double_quant"):
        if knobs.value(name) is not None:
            knobs.refuse(name, "belongs to 4 bits; 8 bits have one scale a row and no choice", "conflicting_parameters")


def _hyperparameters(
    knobs: Knobs,
    entry: CatalogEntry,
    n_examples: int,
    lora: LoraSpec | None,
    method: Method,
    has_validation_file: bool,
) -> Hyperparameters | None:
    multiplier = knobs.number("learning_rate_multiplier", bounds.LEARNING_RATE_MULTIPLIER, lambda: 1.0)
    rate = knobs.number("learning_rate", bounds.LEARNING_RATE, lambda: None)
    values: dict[str, Any] = {
        "n_epochs": knobs.whole("n_epochs", 1, 50, lambda: auto_epochs(n_examples)),
        "batch_size": knobs.whole("batch_size", 1, 256, lambda: auto_batch_size(n_examples, entry.max_auto_batch_size)),
        "warmup_ratio": knobs.number("warmup_ratio", bounds.WARMUP_RATIO, lambda: WARMUP_RATIO),
        "weight_decay": knobs.number("weight_decay", bounds.WEIGHT_DECAY, lambda: 0.0),
        "max_grad_norm": knobs.number("max_grad_norm", bounds.MAX_GRAD_NORM, lambda: 1.0),
        "lr_scheduler_type": knobs.choice("lr_scheduler_type", ("linear", "cosine", "constant"), "linear"),
        "context_length": knobs.whole("context_length", 1, entry.context_length, lambda: entry.context_length),
        "packing": knobs.flag("packing", True),
        "max_steps": knobs.whole("max_steps", 1, MAX_STEPS, lambda: None),
        **measuring(knobs, has_validation_file),
        "beta": knobs.number("beta", bounds.BETA, lambda: DEFAULT_BETA) if method == "dpo" else None,
    }
    if knobs.problems or lora is None or multiplier is None:
        return None
    steps_per_epoch = math.ceil(n_examples / values["batch_size"])
    steps = values["max_steps"] or values["n_epochs"] * steps_per_epoch
    automatic = multiplier * auto_learning_rate(default_rate(entry, method), steps, steps_per_epoch, lora)
    is_relative = rate is None or _says_nothing_new(knobs, rate, automatic)
    if is_relative and automatic not in bounds.LEARNING_RATE:
        text = f"{multiplier:g} makes the learning rate {automatic:g} here; allowed are {bounds.LEARNING_RATE}"
        knobs.refuse("learning_rate_multiplier", text)
        return None
    return Hyperparameters(
        **values,
        learning_rate=automatic if is_relative else rate,
        learning_rate_multiplier=multiplier if is_relative else None,
    )


def _says_nothing_new(knobs: Knobs, rate: float, automatic: float) -> bool:
    """Of an absolute rate: a job shows its multiplier and what came of it, and people copy what it shows."""
    if knobs.value("learning_rate_multiplier") is None:
        return False
    if not math.isclose(rate, automatic):
        text = f"is absolute, so it excludes a learning_rate_multiplier, which would make it {automatic:g} here"
        knobs.refuse("learning_rate", text, "conflicting_parameters")
    return True
