"""Collect the parameters of a create body: from OpenAI's places and ours, and under the aliases of other services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import AliasChoices

from app.domain.error_text.json_text import as_json
from app.domain.jobs.parameters.fields import AUTO, CommaSeparated, Parameters
from app.domain.jobs.parameters.hyperparameters import HYPERPARAMETERS, METHOD_HYPERPARAMETERS
from app.domain.jobs.parameters.lora import ALL_LINEAR, INITIALISATIONS, NO_INITIALISATION, LoraParameters
from app.domain.jobs.parameters.quantization import QuantizationParameters
from app.domain.jobs.parameters.request_parameters import RequestParameters
from app.domain.jobs.spec import Method
from app.errors import BadRequest, UnknownParameter

METHODS: tuple[Method, ...] = ("supervised", "dpo")
OPENAI_METHODS = (*METHODS, "reinforcement")  # its client sends those that the request does not use as null


def names_of(model: type[Parameters], in_hyperparameters: bool = False) -> dict[str, str]:
    """{name or alias: field}: in the subject's own object, or of its fields in `hyperparameters`."""
    return {
        str(choice) if isinstance(choice, str) else str(choice.path[-1]): name
        for name, field in model.model_fields.items()
        for choice in (field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else (name,))
        if isinstance(choice, str) is not in_hyperparameters
    }


# {name or alias in the request: canonical name}
LORA_KEYS = {alias: f"lora.{name}" for alias, name in names_of(LoraParameters).items()}
QUANTIZATION_KEYS = {alias: f"quantization.{name}" for alias, name in names_of(QuantizationParameters).items()}
HYPERPARAMETER_KEYS = {
    alias: name
    for model in (*HYPERPARAMETERS, *METHOD_HYPERPARAMETERS.values())
    for alias, name in names_of(model).items()
} | {alias: f"lora.{name}" for alias, name in names_of(LoraParameters, in_hyperparameters=True).items()}
IN_HYPERPARAMETERS = (*HYPERPARAMETER_KEYS, "lora", "quantization", "load_in_4bit")
METHOD_OF = {name: method for method, model in METHOD_HYPERPARAMETERS.items() for name in model.model_fields}
COMMA_SEPARATED = {
    f"lora.{name}"
    for name, field in LoraParameters.model_fields.items()
    if any(isinstance(item, CommaSeparated) for item in field.metadata)
}


def collect(body: Mapping[str, Any]) -> RequestParameters:
    """Every parameter of a create body. Those that the body's method does not have are among the problems."""
    request = RequestParameters(method_of(body))
    for path, hyperparameters in _hyperparameter_objects(body, request):
        for key, value in hyperparameters.items():
            _collect_hyperparameter(request, f"{path}.{key}", key, value)
    if "lora" in body:
        _collect_lora(request, body["lora"], "lora")
    if "quantization" in body:
        _collect_quantization(request, body["quantization"], "quantization")
    _refuse_those_of_other_methods(request)
    return request


def method_of(body: Mapping[str, Any]) -> Method | None:
    """None for one that is not offered here."""
    method_type = (body.get("method") or {}).get("type") or "supervised"
    return next((method for method in METHODS if method == method_type), None)


def _hyperparameter_objects(
    body: Mapping[str, Any], request: RequestParameters
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method, method_type = body.get("method") or {}, request.method
    if method_type is None:
        seen, known = as_json(method["type"]), " and ".join(map(as_json, METHODS))
        text = f"method.type {seen} is not offered here; allowed are {known}"
        request.problems.append(BadRequest(text, "method.type", "unsupported_value"))
        return
    for key in sorted(method.keys() - {"type", method_type}):
        if key not in OPENAI_METHODS:
            request.refuse_unknown(f"method.{key}", ("type", method_type))
        elif method[key] is not None:
            owner, type_name = as_json(key), as_json(method_type)
            text = f"method.{key} belongs to the type {owner}, but method.type is {type_name}"
            text += f"; give only method.{method_type}"
            request.problems.append(UnknownParameter(text, f"method.{key}"))
    chosen = method.get(method_type) or {}
    for key in chosen.keys() - {"hyperparameters"}:
        request.refuse_unknown(f"method.{method_type}.{key}", ("hyperparameters",))
    yield f"method.{method_type}.hyperparameters", chosen.get("hyperparameters") or {}
    yield "hyperparameters", body.get("hyperparameters") or {}


def _refuse_those_of_other_methods(request: RequestParameters) -> None:
    for name, owner in METHOD_OF.items():
        given = request.given.get(name)
        if given is not None and given.value is not None and request.method not in (owner, None):
            seen = f"belongs to the method {as_json(owner)}, but this job's method is {as_json(request.method)}"
            request.refuse(name, f"{seen}; leave it out", "unsupported_value")


def _collect_hyperparameter(request: RequestParameters, path: str, key: str, value: Any) -> None:
    if key in HYPERPARAMETER_KEYS:
        _add(request, HYPERPARAMETER_KEYS[key], value, path)
    elif key == "lora":
        _collect_lora(request, value, path)
    elif key == "quantization":
        _collect_quantization(request, value, path)
    elif key == "load_in_4bit":
        _collect_load_in_4bit(request, value, path)
    else:
        request.refuse_unknown(path, IN_HYPERPARAMETERS)


def _collect_lora(request: RequestParameters, value: Any, path: str) -> None:
    if value is None or value is True:
        return
    if value is False:
        text = f"{path} = false asks for full fine-tuning; Tunery trains adapters only"
        request.problems.append(BadRequest(text, path, "unsupported_value"))
        return
    if not isinstance(value, Mapping):
        text = f'{path} must be an object such as {{"r": 16}}, not {as_json(value)}'
        request.problems.append(BadRequest(text, path, "invalid_type"))
        return
    for key, item in value.items():
        where = f"{path}.{key}"
        if key in LORA_KEYS:
            _add(request, LORA_KEYS[key], item, where)
        elif key in INITIALISATIONS:
            request.problems.append(UnknownParameter(f"{where}: {NO_INITIALISATION}; leave it out", where))
        else:
            request.refuse_unknown(where, tuple(LORA_KEYS))


def _collect_quantization(request: RequestParameters, value: Any, path: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        example = '{"bits": 4, "type": "nf4"}'
        text = f"{path} must be null (16-bit LoRA) or an object such as {example}, not {as_json(value)}"
        request.problems.append(BadRequest(text, path, "invalid_type"))
        return
    request.add("quantization", value is not None, path)
    for key, item in (value or {}).items():
        if key in QUANTIZATION_KEYS:
            request.add(QUANTIZATION_KEYS[key], item, f"{path}.{key}")
        else:
            request.refuse_unknown(f"{path}.{key}", tuple(QUANTIZATION_KEYS))


def _collect_load_in_4bit(request: RequestParameters, value: Any, path: str) -> None:
    if isinstance(value, bool):
        request.add("quantization", value, path)
    else:
        request.problems.append(BadRequest(f"{path} must be true or false, not {as_json(value)}", path, "invalid_type"))


def _add(request: RequestParameters, name: str, value: Any, path: str) -> None:
    if name in COMMA_SEPARATED and isinstance(value, str) and value not in (ALL_LINEAR, AUTO):
        value = [item.strip() for item in value.split(",")]
    request.add(name, value, path)
