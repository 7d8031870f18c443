"""Messages for invalid settings: the environment variable, the entry in it, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.domain.error_text.json_text import quoted
from app.domain.error_text.validation_text import OBJECT, RULES, STRING

# The other errors have a number or a boolean as their input, which is shown; these may have a secret.
TEXTS = {
    "missing": "is not set",
    "extra_forbidden": "is not allowed",
    "dict_type": OBJECT,
    "model_type": OBJECT,
    "string_type": STRING,
}


def settings_text(error: ValidationError, prefix: str) -> str:
    """Each problem of the settings whose variables begin with `prefix`."""
    return "; ".join(_problem(each, prefix) for each in error.errors(include_url=False))


def _problem(error: Mapping[str, Any], prefix: str) -> str:
    text = _sentence(error)
    if not error["loc"]:
        return text  # of several variables, which it names
    field, *entry = map(str, error["loc"])
    variable = field if field.isupper() else f"{prefix}{field.upper()}"
    return (
        f"{'.'.join([variable, *entry])} {text}" if entry or error["type"] != "value_error" else f"{variable}: {text}"
    )


def _sentence(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in TEXTS:
        return TEXTS[kind]
    if kind == "value_error":
        return str(context["error"])
    if kind == "greater_than":
        rule = f"must be greater than {context['gt']:g}"
    else:
        known = RULES.get(kind, "has an invalid value")
        rule = known if isinstance(known, str) else known(context)
    return f"{rule}, not {quoted(str(error['input']))}"
