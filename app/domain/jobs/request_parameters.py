"""Collect the parameters of a create body, from OpenAI's places and ours and under the aliases of other services."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, as_json, listed, unknown_parameter, unquoted
from app.domain.error_text.validation_text import bounds_of, error_sentence
from app.domain.jobs.definitions import (
    AUTO,
    AtMost,
    Auto,
    AutoRule,
    CommaSeparated,
    ParameterError,
    Parameters,
    ResolutionContext,
)
from app.domain.jobs.hyperparameters import EarlyStopping
from app.domain.jobs.lora_parameters import ALL_LINEAR, LoraParameters
from app.domain.jobs.parameters import HYPERPARAMETERS, QuantizationParameters
from app.domain.methods import METHOD_PARAMETERS, METHODS, OWNERS
from app.errors import BadRequest, UnknownParameter

CODES = {"bool_type": "invalid_type", "literal_error": "unsupported_value"}  # of other errors: invalid_value
OPENAI_METHODS = (*METHODS, "reinforcement")  # its client sends those that the request does not use as null


def keys_of(*models: type[Parameters], in_hyperparameters: bool = False) -> dict[str, str]:
    """{name or alias in the request: canonical name}: in the subject's own object, or of its in `hyperparameters`."""
    return {
        str(choice) if isinstance(choice, str) else str(choice.path[-1]): f"{model.prefix}{name}"
        for model in models
        for name, field in model.model_fields.items()
        for choice in (field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else (name,))
        if isinstance(choice, str) is not in_hyperparameters
    }


OF_HYPERPARAMETERS = (*HYPERPARAMETERS, *METHOD_PARAMETERS)
LORA_KEYS, QUANTIZATION_KEYS = keys_of(LoraParameters), keys_of(QuantizationParameters)
HYPERPARAMETER_KEYS = keys_of(*OF_HYPERPARAMETERS) | keys_of(LoraParameters, in_hyperparameters=True)
IN_HYPERPARAMETERS = (*HYPERPARAMETER_KEYS, "lora", "quantization", "load_in_4bit")
SUBJECTS: tuple[type[Parameters], ...] = (*OF_HYPERPARAMETERS, LoraParameters, QuantizationParameters)
DEFINITIONS: dict[str, FieldInfo] = {
    f"{model.prefix}{name}": field for model in SUBJECTS for name, field in model.model_fields.items()
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


def method_of(body: Mapping[str, Any]) -> str | None:
    """None for one that is not offered here."""
    method_type = (body.get("method") or {}).get("type") or "supervised"
    return method_type if method_type in METHODS else None


def _hyperparameter_objects(
    body: Mapping[str, Any], request: RequestParameters
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method, method_type = body.get("method") or {}, request.method
    if method_type is None:
        text = f"method.type {as_json(method['type'])} is not offered here; allowed are {listed(tuple(METHODS))}"
        if method["type"] == "reinforcement":
            text += ". Graders score the evaluations of a job"
        request.refuse_at("method.type", text, "unsupported_value")
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
    for name, owners in OWNERS.items():
        given = request.given.get(name)
        if given is not None and given.value is not None and request.method not in (*owners, None):
            known = " or ".join(map(as_json, owners))
            seen = f"belongs to the method {known}, but this job's method is {as_json(request.method)}"
            request.refuse(name, f"{seen}; leave it out", "unsupported_value")


def _collect_hyperparameter(request: RequestParameters, path: str, key: str, value: Any) -> None:
    if key in HYPERPARAMETER_KEYS:
        request.add(HYPERPARAMETER_KEYS[key], value, path)
    elif key == "lora":
        _collect_lora(request, value, path)
    elif key == "quantization":
        _collect_quantization(request, value, path)
    elif key != "load_in_4bit":
        request.refuse_unknown(path, IN_HYPERPARAMETERS)
    elif isinstance(value, bool):
        request.add("quantization", value, path)
    else:
        request.refuse_at(path, f"{path} must be true or false, not {as_json(value)}")


def _collect_lora(request: RequestParameters, value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        _collect_object(request, value, path, LORA_KEYS)
    elif value is False:
        text = f"{path} = false asks for full fine-tuning; Tunery trains adapters only"
        request.refuse_at(path, text, "unsupported_value")
    elif value is not None and value is not True:
        request.refuse_at(path, f'{path} must be an object such as {{"r": 16}}, not {as_json(value)}')


def _collect_quantization(request: RequestParameters, value: Any, path: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        example = '{"bits": 4, "type": "nf4"}'
        text = f"{path} must be null (16-bit LoRA) or an object such as {example}, not {as_json(value)}"
        request.refuse_at(path, text)
        return
    request.add("quantization", value is not None, path)
    _collect_object(request, value or {}, path, QUANTIZATION_KEYS)


def _collect_object(request: RequestParameters, values: Mapping[str, Any], path: str, keys: Mapping[str, str]) -> None:
    for key, value in values.items():
        where = f"{path}.{key}"
        if key in keys:
            request.add(keys[key], value, where)
        else:
            request.refuse_unknown(where, tuple(keys))


class Given(NamedTuple):
    """A value as the client gave it, and the dotted path under which it did."""

    value: Any
    path: str


@dataclass
class RequestParameters:
    """Every parameter of a request under its canonical name: "lora.r", "n_epochs", "quantization.type", ..."""

    method: str | None = "supervised"  # None: one that is not offered, which is among the problems
    given: dict[str, Given] = dataclasses.field(default_factory=dict)
    problems: list[BadRequest] = dataclasses.field(default_factory=list)

    def add(self, name: str, value: Any, path: str) -> None:
        is_text = isinstance(value, str) and value not in (ALL_LINEAR, AUTO)
        if is_text and any(isinstance(item, CommaSeparated) for item in DEFINITIONS[name].metadata):
            value = [item.strip() for item in value.split(",")]
        earlier = self.given.get(name)
        if earlier is not None and earlier.value != value:
            seen = f"{path} = {as_json(value)} contradicts {earlier.path} = {as_json(earlier.value)}"
            self.refuse_at(path, f"{seen}; give it once, or twice with one value", "conflicting_parameters")
            return
        self.given[name] = Given(value, path)

    def value(self, name: str) -> Any:
        """The client's value; None where it is absent, null or "auto"."""
        given = self.given.get(name)
        return None if given is None or given.value == AUTO else given.value

    def path(self, name: str) -> str:
        given = self.given.get(name)
        return name if given is None else given.path

    def refuse(self, name: str, text: str, code: str = "invalid_value") -> None:
        path = self.path(name)
        self.refuse_at(path, f"{path}: {text}", code)

    def refuse_at(self, path: str, text: str, code: str = "invalid_type") -> None:
        self.problems.append(BadRequest(text, path, code))

    def refuse_unknown(self, path: str, known: tuple[str, ...]) -> None:
        self.problems.append(unknown_parameter(path, known, len(self.problems)))

    def resolved(
        self, model: type[Parameters], context: ResolutionContext, inherited: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any] | None:
        """The parameters of one subject as they are trained. None where one is wrong; `problems` then says what.

        `inherited` takes the place of "auto".
        """
        fields = _fields(model)
        given = self.given
        values = {
            key: self._json_value(name, is_integer) if name in given else None for key, name, is_integer, _, _ in fields
        }
        try:
            values = vars(model.model_validate(values, context=context))
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._add_problems(model, problem, context)
            return None
        for key, _, _, value, rule in fields:
            if values[key] is None:
                values[key] = inherited[key] if key in inherited else rule(context, values) if rule else value
        return values

    def _json_value(self, name: str, is_integer: bool) -> Any:
        """JSON has one type of number: 3.0 is an integer."""
        value = self.value(name)
        return int(value) if is_integer and isinstance(value, float) and value.is_integer() else value

    def _add_problems(self, model: type[Parameters], problem: ErrorDetails, context: ResolutionContext) -> None:
        field_name, *inner = problem["loc"]
        name, definition = f"{model.prefix}{field_name}", model.model_fields[str(field_name)]
        error = problem.get("ctx", {}).get("error")
        if inner:
            path, fields = ".".join([self.path(name), *map(str, inner)]), EarlyStopping.model_fields
            if problem["type"] == "extra_forbidden":
                self.refuse_unknown(path, tuple(fields))
            else:
                where = unquoted(path, MAX_PATH_CHARACTERS)
                text = error_sentence(problem, bounds_of(fields.get(str(inner[0]))))
                self.problems.append(BadRequest(f"{where}: {text}", where))
        elif isinstance(error, ParameterError):
            for text in error.texts:
                self.refuse(name, text, error.code)
        else:
            limits = [item.limit(context) for item in definition.metadata if isinstance(item, AtMost)]
            bounds = bounds_of(definition) | ({"le": limits[0]} if limits else {})
            self.refuse(name, error_sentence(problem, bounds), CODES.get(problem["type"], "invalid_value"))


@cache
def _fields(model: type[Parameters]) -> tuple[tuple[str, str, bool, Any, AutoRule | None], ...]:
    """(key, canonical name, whether it is an integer, and the value and the rule of its Auto) of each field."""
    autos = {
        key: next(item for item in field.metadata if isinstance(item, Auto))
        for key, field in model.model_fields.items()
    }
    return tuple(
        (key, model.prefix + key, model.model_fields[key].annotation is int, auto.value, auto.rule)
        for key, auto in autos.items()
    )
