"""The knobs that live on a validation file: how often it is measured, when training stops early, which adapter wins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, as_json, unquoted
from app.domain.error_text.validation_text import error_sentence
from app.domain.jobs.bounds import EARLY_STOPPING_THRESHOLD
from app.domain.jobs.parameters import Knobs
from app.domain.jobs.spec import EarlyStopping
from app.errors import BadRequest, UnknownParameter

MAX_EVAL_STEPS = 10_000_000
NEEDS_VALIDATION = ("eval_steps", "early_stopping", "promote_best")


def measuring(knobs: Knobs, has_validation_file: bool) -> dict[str, Any]:
    """Fields of Hyperparameters. Without early stopping the last adapter is the result: decision 13 says why."""
    early_stopping = _early_stopping(knobs)
    fields = {
        "eval_steps": knobs.whole("eval_steps", 1, MAX_EVAL_STEPS, lambda: None),
        "early_stopping": early_stopping,
        "promote_best": knobs.flag("promote_best", early_stopping is not None),
    }
    if not has_validation_file:
        for name in NEEDS_VALIDATION:
            if knobs.value(name) not in (None, False):
                knobs.refuse(name, "needs a validation_file; name one, or leave this knob out", "invalid_value")
    return fields


def _early_stopping(knobs: Knobs) -> EarlyStopping | None:
    value = knobs.value("early_stopping")
    if value is None or value is False:
        return None
    if value is True:
        return EarlyStopping()
    if not isinstance(value, Mapping):
        knobs.refuse(
            "early_stopping",
            f'{as_json(value)} is not true, false or {{"patience": 3, "threshold": 0}}',
            "invalid_type",
        )
        return None
    try:
        found = EarlyStopping.model_validate(dict(value), strict=True)
    except ValidationError as error:
        knobs.problems += [
            _problem(knobs.path("early_stopping"), problem) for problem in error.errors(include_url=False)
        ]
        return None
    if found.threshold not in EARLY_STOPPING_THRESHOLD:
        text = f"threshold: {as_json(found.threshold)} is not a number {EARLY_STOPPING_THRESHOLD}"
        knobs.refuse("early_stopping", text)
    return found


def _problem(path: str, problem: ErrorDetails) -> BadRequest:
    where = unquoted(".".join([path, *map(str, problem["loc"])]), MAX_PATH_CHARACTERS)
    if problem["type"] == "extra_forbidden":
        known = ", ".join(EarlyStopping.model_fields)
        return UnknownParameter(f"unknown parameter {where}; known here: {known}", where)
    return BadRequest(f"{where}: {error_sentence(problem)}", where)
