"""A create request -> what will be trained: aliases become one name, "auto" becomes a number, once.

Gather every knob under its canonical name (an unknown key, or one knob given twice with different values, is an
error), check the values, fill in what is absent. All problems of a request are reported at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from app.domain.auto import WARMUP_RATIO, auto_batch_size, auto_epochs, auto_learning_rate
from app.domain.catalog import MAX_RANK, CatalogEntry
from app.domain.gather import ALL_LINEAR, gather
from app.domain.knobs import Knobs
from app.domain.spec import Hyperparameters, JobSpec, LoraSpec, QuantizationSpec
from app.errors import all_at_once

DEFAULT_RANK = 16
MAX_SEED = 2_147_483_647


def resolve(body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int) -> JobSpec:
    """Turn a create body into a JobSpec for a training file of `n_examples` lines.

    Raises BadRequest: the first problem's `param` and code, a message that lists them all.
    """
    knobs = gather(body)
    spec = _fill_in(knobs, body, base_model, entry, max(1, n_examples))  # also after a problem: all are told at once
    if spec is None or knobs.problems:
        raise all_at_once(knobs.problems)
    return spec


def _fill_in(
    knobs: Knobs, body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int
) -> JobSpec | None:
    lora = _lora(knobs, entry)
    quantization = _quantization(knobs)
    hyperparameters = _hyperparameters(knobs, entry, n_examples, lora)
    seed = body.get("seed")
    if knobs.problems or lora is None or hyperparameters is None:
        return None
    return JobSpec(
        base_model=base_model,
        lora=lora,
        quantization=quantization,
        hyperparameters=hyperparameters,
        seed=random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed,
    )


def _lora(knobs: Knobs, entry: CatalogEntry) -> LoraSpec | None:
    targets = _target_modules(knobs, entry)
    limit = min((min(entry.target_modules[name]) for name in targets), default=MAX_RANK)
    limit = min(limit, MAX_RANK)
    r = knobs.whole("lora.r", 1, MAX_RANK, lambda: DEFAULT_RANK)
    if r is not None and r > limit and targets:
        knobs.refuse("lora.r", f"{r} is above the smallest dimension of the target modules, which is {limit}")
    alpha = knobs.number("lora.alpha", lambda: 2.0 * (r or DEFAULT_RANK), above=0)
    dropout = knobs.number("lora.dropout", lambda: 0.0, least=0, below=1)
    use_rslora = knobs.flag("lora.use_rslora", False)
    knobs.only("lora.use_dora", False, "DoRA is not offered yet")
    knobs.only("lora.bias", "none", "trained biases do not load in most servers and are not offered")
    knobs.only(
        "lora.init",
        "default",
        "other initialisations (PiSSA, LoftQ, ...) change the base and are not offered",
    )
    if knobs.problems or r is None or alpha is None or dropout is None:
        return None
    return LoraSpec(r=r, alpha=alpha, dropout=dropout, target_modules=targets, use_rslora=use_rslora)


def _target_modules(knobs: Knobs, entry: CatalogEntry) -> tuple[str, ...]:
    available = tuple(sorted(entry.target_modules))
    asked = knobs.value("lora.target_modules")
    if asked in (None, ALL_LINEAR, [ALL_LINEAR]):
        return available
    if not isinstance(asked, list) or not asked or not all(isinstance(name, str) for name in asked):
        knobs.refuse("lora.target_modules", f'must be "all-linear" or a list of names out of {", ".join(available)}')
        return ()
    unknown = [name for name in asked if name not in available]
    if unknown:
        seen = ", ".join(repr(name) for name in unknown[:8])
        knobs.refuse("lora.target_modules", f"this model does not have {seen}; it has {', '.join(available)}")
        return ()
    return tuple(sorted(set(asked)))


def _quantization(knobs: Knobs) -> QuantizationSpec | None:
    wanted = knobs.values.get("quantization")
    if wanted is not None and not wanted.value:
        return None
    values: dict[str, Any] = {}
    for key, allowed in (
        ("bits", (4,)),
        ("type", ("nf4", "fp4")),
        ("compute_dtype", ("bfloat16", "float16", "float32")),
    ):
        value = knobs.value(f"quantization.{key}")
        if value is not None and (value not in allowed or isinstance(value, bool)):
            knobs.refuse(
                f"quantization.{key}",
                f"{value!r} is not offered; allowed: {', '.join(map(str, allowed))}",
                "unsupported_value",
            )
        elif value is not None:
            values[key] = value
    values["double_quant"] = knobs.flag("quantization.double_quant", True)
    return None if knobs.problems else QuantizationSpec(**values)


def _hyperparameters(
    knobs: Knobs, entry: CatalogEntry, n_examples: int, lora: LoraSpec | None
) -> Hyperparameters | None:
    multiplier = knobs.number("learning_rate_multiplier", lambda: 1.0, above=0)
    rate = knobs.number("learning_rate", lambda: None, above=0)
    if rate is not None and knobs.value("learning_rate_multiplier") is not None:
        knobs.refuse(
            "learning_rate",
            "is absolute, so it excludes a learning_rate_multiplier",
            "conflicting_parameters",
        )
    values: dict[str, Any] = {
        "n_epochs": knobs.whole("n_epochs", 1, 50, lambda: auto_epochs(n_examples)),
        "batch_size": knobs.whole("batch_size", 1, 256, lambda: auto_batch_size(n_examples, entry.max_auto_batch_size)),
        "warmup_ratio": knobs.number("warmup_ratio", lambda: WARMUP_RATIO, least=0, most=1),
        "weight_decay": knobs.number("weight_decay", lambda: 0.0, least=0),
        "max_grad_norm": knobs.number("max_grad_norm", lambda: 1.0, above=0),
        "lr_scheduler_type": knobs.choice("lr_scheduler_type", ("linear", "cosine", "constant"), "linear"),
        "context_length": knobs.whole("context_length", 1, entry.context_length, lambda: entry.context_length),
        "packing": knobs.flag("packing", True),
        "max_steps": knobs.whole("max_steps", 1, 10_000_000, lambda: None),
    }
    if knobs.problems or lora is None or multiplier is None:
        return None
    steps_per_epoch = math.ceil(n_examples / values["batch_size"])
    steps = values["max_steps"] or values["n_epochs"] * steps_per_epoch
    return Hyperparameters(
        **values,
        learning_rate=rate or auto_learning_rate(entry.learning_rate, steps, steps_per_epoch, lora) * multiplier,
        learning_rate_multiplier=None if rate else multiplier,
    )
