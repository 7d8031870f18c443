"""Check the shape of a body: pydantic's validation errors as problems in terms of JSON, one sentence for each type.

pydantic's own messages use terms of Python ("Dictionary should have ... after validation", "Input should be a valid
integer"). A test sends hostile values to every schema and compares the resulting error types with this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from app.domain.error_text.json_text import as_json, counted, plain_number, quoted, unknown_parameter, unquoted
from app.errors import BadRequest

Parsed = TypeVar("Parsed", bound=BaseModel)
Fields = Mapping[str, FieldInfo]  # of a body, or the parameters of a query, by name
MAX_PROBLEMS = 200
NON_FIELD_PARTS = ("body", "query", "path", "header", "[key]")  # parts of pydantic's locations that are no names

BOOLEAN, INTEGER, NUMBER = "must be true or false", "must be a whole number", "must be a number"
STRING, ARRAY, OBJECT = "must be a string", "must be an array", "must be a JSON object"
OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than_equal")  # numbers
# The message appends the value: "must be a whole number, not true".
RULES: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "bool_type": BOOLEAN,
    "bool_parsing": BOOLEAN,
    "int_type": INTEGER,
    "int_parsing": INTEGER,
    "int_parsing_size": f"{INTEGER} of at most 19 digits",
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "string_type": STRING,
    "list_type": ARRAY,
    "dict_type": OBJECT,
    "model_type": OBJECT,
    "model_attributes_type": OBJECT,
    "none_required": "must be null",
    "literal_error": lambda context: f"must be {_in_json(context['expected'])}",
    "string_pattern_mismatch": lambda context: f"must match the pattern {context['pattern']}",
    **dict.fromkeys(OUT_OF_RANGE, lambda context: _range(context)),
    "union_tag_invalid": lambda context: f"{_tag(context)} must be one of {_in_json(context['expected_tags'])}",
    "union_tag_not_found": lambda context: f"must have a {_tag(context)}",
    "value_error": lambda context: str(context["error"]),
}
LENGTHS = ("string_too_long", "too_long", "string_too_short", "too_short")
DEFAULT_RULE = "must be a value as the API reference describes it"


def check_shape(model: type[Parsed], body: Mapping[str, Any]) -> tuple[Parsed | None, list[BadRequest]]:
    """The parsed body, and the problems of its shape.

    Invalid keys are left out, so that the domain can check the rest and one error has all problems. None if the rest is
    invalid, too.
    """
    body = _limit_unknown_keys(model, body)
    try:
        return model.model_validate(body), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = as_problems(errors, model.model_fields)
    invalid_keys = {error_item["loc"][0] for error_item in errors}
    try:
        return model.model_validate({key: value for key, value in body.items() if key not in invalid_keys}), problems
    except ValidationError:
        return None, problems


def as_problems(errors: Sequence[Mapping[str, Any]], fields: Fields) -> list[BadRequest]:
    """Convert pydantic's errors to BadRequest; `fields` have the allowed names and bounds that a message lists.

    At most MAX_PROBLEMS, as a message cannot hold more: a body of a megabyte may have 100,000 errors.
    """
    return [_as_problem(error, fields, earlier) for earlier, error in enumerate(errors[:MAX_PROBLEMS])]


def error_sentence(error: Mapping[str, Any], bounds: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The problem of one value, to append to its path. `error` is an item of pydantic's `ValidationError.errors()`,
    which has only the bound that is crossed; `bounds` are those of the field.
    """
    kind, value, context = str(error["type"]), error.get("input"), {**bounds, **error.get("ctx", {})}
    if kind in LENGTHS:
        return _length_problem(value, context.get("min_length"), context.get("max_length"))
    rule = RULES.get(kind, DEFAULT_RULE)
    return f"{rule if isinstance(rule, str) else rule(context)}, not {as_json(value)}"


def _limit_unknown_keys(model: type[BaseModel], body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body` with at most MAX_PROBLEMS unknown keys: there may be 100,000, and validation of each takes time."""
    allowed = _names(model)
    unknown = [key for key in body if key not in allowed]
    dropped = set(unknown[MAX_PROBLEMS:])
    return {key: value for key, value in body.items() if key not in dropped} if dropped else body


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def bounds_of(definition: Any) -> dict[str, Any]:
    """The bounds `ge`, `gt`, `le` of a number, from its field or from a type such as Annotated[int, Ge(1)] | None."""
    is_field = isinstance(definition, FieldInfo)
    parts = (definition.annotation, *definition.metadata) if is_field else get_args(definition)
    found = {name: getattr(definition, name) for name in ("ge", "gt", "le") if hasattr(definition, name)}
    for part in parts:
        found |= bounds_of(part)
    return found


def _as_problem(error: Mapping[str, Any], fields: Fields, earlier: int) -> BadRequest:
    location, subject = list(error["loc"]), ""
    if location[-1:] == ["[key]"]:  # the part before it is the key itself; the object that holds it is reported
        location, subject = location[:-2], "the key "
    if location and location[0] in NON_FIELD_PARTS:
        del location[0]
    names = (part for index, part in enumerate(location) if not _tagged(_objects_at(fields, location[:index]), part))
    path = ".".join(unquoted(str(name)) for name in names)
    kind = str(error["type"])
    if kind == "extra_forbidden":
        known = next(iter(_objects_at(fields, error["loc"][:-1])), {})
        return unknown_parameter(path, tuple(field.alias or name for name, field in known.items()), earlier)
    if kind == "missing":
        return BadRequest(f"you must provide {path}", path, "missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    bounds = _bounds_at(fields, error["loc"]) if kind in OUT_OF_RANGE else {}
    return BadRequest(f"{path}: {subject}{error_sentence(error, bounds)}", path, code)


def _bounds_at(fields: Fields, location: Sequence[int | str]) -> dict[str, Any]:
    *parents, name = (part for part in location if isinstance(part, str) and part not in NON_FIELD_PARTS)
    found = (bounds_of(each[name]) for each in _objects_at(fields, parents) if name in each)
    return next(found, {})


def _objects_at(fields: Fields, location: Sequence[int | str]) -> list[Fields]:
    """The fields of the objects that `location` of a body with `fields` may have."""
    options = [fields]
    for part in location:
        if tagged := _tagged(options, part):
            options = tagged
        elif isinstance(part, str):
            models = (model for each in options if part in each for model in _models_in(each[part].annotation))
            options = [model.model_fields for model in models]
    return options


def _tagged(options: Sequence[Fields], part: int | str) -> list[Fields]:
    """The members of a union that `part` of a location selects; pydantic names each by its `kind` or `type`."""
    tags = ((each, each.get("kind") or each.get("type")) for each in options if part not in each)
    return [each for each, tag in tags if tag and part in get_args(tag.annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _length_problem(value: Any, min_length: int | None, max_length: int | None) -> str:
    if not value:
        return "must not be empty"
    noun = "character" if isinstance(value, str) else "pair" if isinstance(value, Mapping) else "item"
    subject = f"{quoted(value)} " if isinstance(value, str) else ""
    bound = f"at most {max_length:,} are allowed" if min_length is None else f"at least {min_length:,} are needed"
    return f"{subject}has {counted(len(value), noun)}; {bound}"


def _range(context: Mapping[str, Any]) -> str:
    """What is allowed by the bounds `ge` or `gt`, and `le`, of which one may be missing."""
    if context.get("gt") is not None:
        above = f"must be greater than {plain_number(context['gt'])}"
        return above if context.get("le") is None else f"{above} and at most {plain_number(context['le'])}"
    if context.get("le") is None:
        return f"must be at least {plain_number(context['ge'])}"
    if context.get("ge") is None:
        return f"must be at most {plain_number(context['le'])}"
    return f"must be from {plain_number(context['ge'])} to {plain_number(context['le'])}"


def _tag(context: Mapping[str, Any]) -> str:
    """The key that selects the member of a union."""
    return str(context["discriminator"]).strip("'")


def _in_json(expected: str) -> str:
    """The values of a Literal in JSON's quotes; pydantic writes them in Python's: 'asc' or 'desc'."""
    return expected.replace("'", '"')


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
    field, *entry = error["loc"]
    variable = field if field.isupper() else f"{prefix}{field.upper()}"
    if error["type"] == "value_error" and all(isinstance(part, int) for part in entry):  # the text names the item
        return f"{variable}: {text}"
    return f"{'.'.join(map(str, [variable, *entry]))} {text}"


def _sentence(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in TEXTS:
        return TEXTS[kind]
    if kind == "value_error":
        return str(context["error"])
    known = RULES.get(kind, "has an invalid value")
    rule = known if isinstance(known, str) else known(context)
    return f"{rule}, not {quoted(str(error['input']))}"
