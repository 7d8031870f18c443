"""JSON schemas of the request parameters, from their definitions in app.domain.jobs.parameters."""

from __future__ import annotations

import inspect
from typing import Any

from app.domain.jobs.lora_parameters import LoraParameters
from app.domain.jobs.parameters import HYPERPARAMETERS, METHOD_HYPERPARAMETERS, Parameters, QuantizationParameters
from app.domain.jobs.request_parameters import names_of
from app.domain.jobs.spec import Method

JsonSchema = dict[str, Any]


def _properties(model: type[Parameters], in_hyperparameters: bool = False) -> dict[str, JsonSchema]:
    """{name or alias: schema}."""
    schemas = _without_titles(model.model_json_schema()["properties"])
    return {alias: schemas[name] for alias, name in names_of(model, in_hyperparameters).items()}


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title"}


def _object(properties: dict[str, JsonSchema]) -> JsonSchema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _subject(model: type[Parameters], *others: JsonSchema) -> JsonSchema:
    description = " ".join(inspect.cleandoc(model.__doc__ or "").split())
    return {"anyOf": [_object(_properties(model)), *others, {"type": "null"}], "description": description}


LORA = _subject(LoraParameters, {"const": True})
QUANTIZATION = _subject(QuantizationParameters)


def _hyperparameters(*models: type[Parameters]) -> JsonSchema:
    own = {name: schema for model in models for name, schema in _properties(model).items()}
    beside = {
        "lora": LORA,
        "quantization": QUANTIZATION,
        "load_in_4bit": {"type": "boolean", "description": "false means `quantization: null`."},
    }
    properties = own | _properties(LoraParameters, in_hyperparameters=True) | beside
    return {"anyOf": [_object(properties), {"type": "null"}]}


def _hyperparameters_of(method: Method) -> JsonSchema:
    own = [METHOD_HYPERPARAMETERS[method]] if method in METHOD_HYPERPARAMETERS else []
    return _hyperparameters(*HYPERPARAMETERS, *own)


SUPERVISED_HYPERPARAMETERS = _hyperparameters_of("supervised")
DPO_HYPERPARAMETERS = _hyperparameters_of("dpo")
ALL_HYPERPARAMETERS = _hyperparameters(*HYPERPARAMETERS, *METHOD_HYPERPARAMETERS.values())
