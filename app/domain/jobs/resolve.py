"""A create request -> what will be trained: aliases become one name, "auto" becomes a number, once.

All problems of a request are reported at once. The parameters are defined in app.domain.jobs.parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from app.domain.base_models.catalog import CatalogEntry
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.jobs.auto_hyperparameters import auto_learning_rate
from app.domain.jobs.bounds import LEARNING_RATE
from app.domain.jobs.parameters.collect import collect
from app.domain.jobs.parameters.fields import ParentAdapter, ResolutionContext
from app.domain.jobs.parameters.hyperparameters import (
    HYPERPARAMETERS,
    METHOD_HYPERPARAMETERS,
    NEED_VALIDATION_FILE,
    EvaluationParameters,
)
from app.domain.jobs.parameters.lora import resolve_lora
from app.domain.jobs.parameters.quantization import resolve_quantization
from app.domain.jobs.parameters.request_parameters import RequestParameters
from app.domain.jobs.spec import LINE_RULES, Hyperparameters, JobSpec, LoraSpec, Method
from app.errors import combine_errors

MAX_SEED = 2_147_483_647
# DPO needs a lower rate than supervised training. Published pairs of both stages differ by 4 (OLMo 7B: 2e-6, 5e-7) to
# 40 (Zephyr 7B with QLoRA: 2e-4, 5e-6); in the middle of those, on a log scale, is a tenth.
DPO_RATE = 0.1


def resolve(
    body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int, parent: ParentAdapter | None = None
) -> JobSpec:
    """Turn a create body into a JobSpec for a training file of `n_examples` lines, on a base model or an adapter.

    Raises BadRequest: the first problem's `param` and code, a message that lists them all.
    """
    request = collect(body)
    context = ResolutionContext(entry, max(1, n_examples), parent)
    method = request.method or "supervised"  # another one is a problem already
    # each also after a problem of an earlier one, as all are reported
    resolved = resolve_lora(request, context)
    quantization = resolve_quantization(request, context)
    lora = resolved.lora if resolved else None
    has_validation_file = body.get("validation_file") is not None
    hyperparameters = _hyperparameters(request, context, method, lora, has_validation_file)
    if resolved is None or hyperparameters is None or request.problems:
        raise combine_errors(request.problems)
    seed = body.get("seed")
    return JobSpec(
        base_model=base_model,
        method=method,
        line_rules=LINE_RULES,
        continued_from=parent.model if parent else None,
        lora=resolved.lora,
        layer_patterns=resolved.layer_patterns,
        quantization=quantization,
        dtype_is_free=quantization is not None and request.value("quantization.compute_dtype") is None,
        hyperparameters=hyperparameters,
        sample_prompts=tuple(body.get("sample_prompts") or ()),
        evaluation=EvaluationRequest.model_validate(body["evaluation"]) if body.get("evaluation") else None,
        seed=random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed,
    )


def default_rate(entry: CatalogEntry, method: Method) -> float:
    """The learning rate at multiplier 1, before the run's length and the adapter's strength are looked at."""
    return entry.learning_rate * (DPO_RATE if method == "dpo" else 1)


def _hyperparameters(
    request: RequestParameters,
    context: ResolutionContext,
    method: Method,
    lora: LoraSpec | None,
    has_validation_file: bool,
) -> Hyperparameters | None:
    values: dict[str, Any] = {}
    for model in (*HYPERPARAMETERS, *([METHOD_HYPERPARAMETERS[method]] if method in METHOD_HYPERPARAMETERS else ())):
        values |= request.resolved(model, context) or {}
        if model is EvaluationParameters and not has_validation_file:
            _refuse_evaluation(request)
    if request.problems or lora is None:
        return None
    return _with_learning_rate(request, context, method, lora, values)


def _refuse_evaluation(request: RequestParameters) -> None:
    for name in NEED_VALIDATION_FILE:
        if request.value(name) not in (None, False):
            request.refuse(name, "needs a validation_file; name one, or leave this parameter out")


def _with_learning_rate(
    request: RequestParameters, context: ResolutionContext, method: Method, lora: LoraSpec, values: dict[str, Any]
) -> Hyperparameters | None:
    rate, multiplier = values.pop("learning_rate"), values.pop("learning_rate_multiplier")
    steps_per_epoch = math.ceil(context.n_examples / values["batch_size"])
    steps = values["max_steps"] or values["n_epochs"] * steps_per_epoch
    automatic = multiplier * auto_learning_rate(default_rate(context.entry, method), steps, steps_per_epoch, lora)
    is_relative = rate is None or _repeats_multiplier(request, rate, automatic)
    if is_relative and automatic not in LEARNING_RATE:
        text = f"{multiplier:g} makes the learning rate {automatic:g} here; allowed are {LEARNING_RATE}"
        request.refuse("learning_rate_multiplier", text)
        return None
    return Hyperparameters(
        **values,
        learning_rate=automatic if is_relative else rate,
        learning_rate_multiplier=multiplier if is_relative else None,
    )


def _repeats_multiplier(request: RequestParameters, rate: float, automatic: float) -> bool:
    """Whether `learning_rate` only repeats what its multiplier implies. Clients send both back, as jobs show both."""
    if request.value("learning_rate_multiplier") is None:
        return False
    if not math.isclose(rate, automatic):
        text = f"is absolute, so it excludes a learning_rate_multiplier, which would make it {automatic:g} here"
        request.refuse("learning_rate", text, "conflicting_parameters")
    return True
