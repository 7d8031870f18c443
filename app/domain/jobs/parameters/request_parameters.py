"""The parameters of one request: each under its canonical name, all problems collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from app.domain.error_text.json_text import MAX_PATH_CHARACTERS, as_json, unquoted
from app.domain.error_text.unknown_names import unknown_parameter
from app.domain.error_text.validation_text import error_sentence
from app.domain.jobs.bounds import Bounds
from app.domain.jobs.parameters.fields import (
    AUTO,
    AtMost,
    Auto,
    AutoRule,
    ParameterError,
    Parameters,
    ResolutionContext,
)
from app.domain.jobs.spec import Method
from app.errors import BadRequest


class Given(NamedTuple):
    """A value as the client gave it, and the dotted path under which it did."""

    value: Any
    path: str


@dataclass
class RequestParameters:
    """Every parameter of a request under its canonical name: "lora.r", "n_epochs", "quantization.type", ..."""

    method: Method | None = "supervised"  # None: one that is not offered, which is among the problems
    given: dict[str, Given] = dataclasses.field(default_factory=dict)
    problems: list[BadRequest] = dataclasses.field(default_factory=list)

    def add(self, name: str, value: Any, path: str) -> None:
        earlier = self.given.get(name)
        if earlier is not None and earlier.value != value:
            seen = f"{path} = {as_json(value)} contradicts {earlier.path} = {as_json(earlier.value)}"
            text = f"{seen}; give it once, or twice with one value"
            self.problems.append(BadRequest(text, path, "conflicting_parameters"))
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
        self.problems.append(BadRequest(f"{path}: {text}", path, code))

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
                self._add_problems(model, context, problem)
            return None
        for key, _, _, value, rule in fields:
            if values[key] is None:
                values[key] = inherited[key] if key in inherited else rule(context, values) if rule else value
        return values

    def _json_value(self, name: str, is_integer: bool) -> Any:
        """JSON has one type of number: 3.0 is an integer."""
        value = self.value(name)
        return int(value) if is_integer and isinstance(value, float) and value.is_integer() else value

    def _add_problems(self, model: type[Parameters], context: ResolutionContext, problem: ErrorDetails) -> None:
        field_name, *inner = problem["loc"]
        name, definition = f"{model.prefix}{field_name}", model.model_fields[str(field_name)]
        error = problem.get("ctx", {}).get("error")
        if inner:
            path = ".".join([self.path(name), *map(str, inner)])
            annotation: Any = definition.annotation
            if problem["type"] == "extra_forbidden":
                self.refuse_unknown(path, tuple(annotation.model_fields))
            else:
                where = unquoted(path, MAX_PATH_CHARACTERS)
                self.problems.append(BadRequest(f"{where}: {error_sentence(problem)}", where))
        elif isinstance(error, ParameterError):
            for text in error.texts:
                self.refuse(name, text, error.code)
        else:
            allowed, code = _allowed_values(definition, context)
            self.refuse(name, f"{as_json(self.value(name))} is not {allowed}", code)


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


def _allowed_values(definition: FieldInfo, context: ResolutionContext) -> tuple[str, str]:
    """Return a text with the allowed values of a parameter, and the error code of other values.

    Every number must be defined with `ge`, and with `le` or `AtMost`: a missing bound is an error of the definition.
    """
    kind = definition.annotation
    if kind is bool:
        return "true or false", "invalid_type"
    if kind not in (int, float):
        return f"offered; allowed: {', '.join(map(str, get_args(kind)))}", "unsupported_value"
    minimums: list[Any] = [item.ge for item in definition.metadata if isinstance(item, Ge)]
    maximums: list[Any] = [
        item.limit(context) if isinstance(item, AtMost) else item.le
        for item in definition.metadata
        if isinstance(item, AtMost | Le)
    ]
    if not (minimums and maximums):
        raise TypeError(f"a number needs a minimum (ge) and a maximum (le or AtMost), but has {definition!r}")
    return f"a {'whole ' if kind is int else ''}number {Bounds(minimums[0], maximums[0])}", "invalid_value"
