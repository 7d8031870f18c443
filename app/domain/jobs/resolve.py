"""A create request -> what will be trained: aliases become one name, "auto" becomes a number, once.

All problems of a request are reported at once. The parameters are defined in parameters.py and lora_parameters.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from app.domain.base_models.catalog import CatalogEntry
from app.domain.datasets.held_out import MAX_SEED
from app.domain.datasets.template_arguments import KEY as TEMPLATE_ARGUMENTS
from app.domain.datasets.template_arguments import given_arguments
from app.domain.error_text.json_text import as_json
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.jobs.definitions import ParentAdapter, ResolutionContext
from app.domain.jobs.hyperparameters import LEARNING_RATE, Hyperparameters, LoraSpec
from app.domain.jobs.layer_patterns import PatternError, match_patterns
from app.domain.jobs.lora_parameters import FIXED_BY_PARENT, LoraParameters
from app.domain.jobs.parameters import (
    HYPERPARAMETERS,
    NEED_VALIDATION_FILE,
    EvaluationParameters,
    QuantizationParameters,
    TrainingParameters,
    auto_learning_rate,
)
from app.domain.jobs.request_parameters import RequestParameters, collect
from app.domain.jobs.spec import LINE_RULES, JobSpec, LayerPatterns, QuantizationSpec
from app.domain.methods import METHODS, Method
from app.errors import combine_errors


def resolve(
    body: Mapping[str, Any],
    base_model: str,
    entry: CatalogEntry,
    n_examples: int,
    parent: ParentAdapter | None = None,
    file_bytes: int = 0,
    gpus: int = 0,
) -> JobSpec:
    """Turn a create body into a JobSpec for a training file of `n_examples` lines, on a base model or an adapter.

    With `gpus` of each job, "auto" of the batch fills them.
    Raises BadRequest: the first problem's `param` and code, a message that lists them all.
    """
    request = collect(body)
    context = ResolutionContext(entry, max(1, n_examples), parent, file_bytes, gpus)
    method = METHODS[request.method or "supervised"]  # another one is a problem already
    # each also after a problem of an earlier one, as all are reported
    lora = _resolve_lora(request, context)
    layer_patterns = _match_patterns(request, lora, entry) if lora else None
    quantization = _resolve_quantization(request, context)
    has_validation_file = body.get("validation_file") is not None
    hyperparameters = _hyperparameters(request, context, method, lora, has_validation_file)
    if lora is None or hyperparameters is None or request.problems:
        raise combine_errors(request.problems)
    seed, is_given = body.get("seed"), body.get(TEMPLATE_ARGUMENTS) is not None
    return JobSpec(
        base_model=base_model,
        method=method.name,
        line_rules=LINE_RULES,
        continued_from=parent.model if parent else None,
        lora=lora,
        layer_patterns=layer_patterns,
        quantization=quantization,
        dtype_is_free=quantization is not None and request.value("quantization.compute_dtype") is None,
        hyperparameters=hyperparameters,
        chat_template_kwargs=given_arguments(body) if is_given or not parent else parent.chat_template_kwargs,
        sample_prompts=tuple(body.get("sample_prompts") or ()),
        evaluation=EvaluationRequest.model_validate(body["evaluation"]) if body.get("evaluation") else None,
        seed=draw_seed() if seed is None else seed,
    )


def draw_seed() -> int:
    return random.SystemRandom().randint(0, MAX_SEED)


def _resolve_quantization(request: RequestParameters, context: ResolutionContext) -> QuantizationSpec | None:
    """None for a 16-bit base, and where something is wrong; `request.problems` then says what."""
    wanted = request.given.get("quantization")
    if wanted is not None and not wanted.value:
        return None
    parameters = request.resolved(QuantizationParameters, context)
    if request.value("quantization.bits") == 8:
        for name in ("quantization.type", "quantization.double_quant"):
            if request.value(name) is not None:
                text = "belongs to 4 bits; 8 bits have one scale a row and no choice"
                request.refuse(name, text, "conflicting_parameters")
    return None if parameters is None or request.problems else QuantizationSpec(**parameters)


def _resolve_lora(request: RequestParameters, context: ResolutionContext) -> LoraSpec | None:
    """None where something is wrong; `request.problems` then says what."""
    parameters = request.resolved(LoraParameters, context, vars(context.parent.lora) if context.parent else {})
    if parameters is None or request.problems:
        return None
    lora = LoraSpec(**parameters)
    if context.parent:
        _check_parent(request, lora, context.parent)
    return None if request.problems else lora


def _check_parent(request: RequestParameters, lora: LoraSpec, parent: ParentAdapter) -> None:
    for name in FIXED_BY_PARENT:
        given, has = getattr(lora, name), getattr(parent.lora, name)
        if given != has:
            text = (
                f"{as_json(given)} contradicts the {as_json(has)} of {parent.model}, which is continued; leave it out"
            )
            request.refuse(f"lora.{name}", text, "conflicting_parameters")


def _match_patterns(request: RequestParameters, lora: LoraSpec, entry: CatalogEntry) -> LayerPatterns | None:
    """The patterns by single layers. None also for an entry without layer names: the worker matches then.

    Older entries have none, and those of too many layers.
    """
    try:
        return match_patterns(lora, entry.layers) if entry.layers else None
    except PatternError as error:
        for problem in error.problems:
            request.refuse(problem.param, problem.text)
        return None


def _hyperparameters(
    request: RequestParameters,
    context: ResolutionContext,
    method: Method,
    lora: LoraSpec | None,
    has_validation_file: bool,
) -> Hyperparameters | None:
    values: dict[str, Any] = {}
    for model in (*HYPERPARAMETERS, method.parameters):
        values |= request.resolved(model, context) or {}
        if model is EvaluationParameters and not has_validation_file:
            _refuse_evaluation(request)
        if model is TrainingParameters and values:
            values["batch_size"] = _batch_size(request, method, values["batch_size"])
    if request.problems or lora is None:
        return None
    return _with_learning_rate(request, context, method, lora, values)


def _batch_size(request: RequestParameters, method: Method, batch_size: int) -> int:
    if request.value("batch_size") is not None and batch_size < method.min_batch_size:
        text = f"{batch_size} is too small: the method {method.name} compares the examples of a step"
        request.refuse("batch_size", f"{text}; give at least {method.min_batch_size}")
    return max(batch_size, method.min_batch_size)


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
    rate_of_method = context.entry.learning_rate * method.rate_factor
    automatic = multiplier * auto_learning_rate(rate_of_method, steps, steps_per_epoch, lora)
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
