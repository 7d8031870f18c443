"""A JSON schema in words: one line for a type, one row for a field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
MAX_SHOWN_BOUND = 1 << 53
MIN_SHARED_FIELDS = 4  # an object that repeats so many fields of an earlier one is told by what it adds


@dataclass(frozen=True)
class Field:
    path: str  # dotted: lora.r
    type: str
    required: bool
    default: str | None
    meaning: str


def type_name(schema: Schema) -> str:
    """`integer from 1 up to 50`, `"auto" or number above 0 or null`, `JobBody`."""
    if "$ref" in schema:
        return ref_name(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_name(option) for option in schema["anyOf"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"list of {'any of ' * ('enum' in items)}{type_name(items)}{_count(schema, 'Items', 'of them')}"
    if "contentMediaType" in schema or schema.get("format") == "binary":
        return "bytes"
    inner = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(inner, Mapping):
        return f"object of {type_name(inner)}{_count(schema, 'Properties', 'pairs')}"
    if isinstance(schema.get("type"), list):
        return " or ".join(type_name({**schema, "type": one}) for one in schema["type"])
    return str(schema.get("type", "anything")) + _range(schema) + _count(schema, "Length", "characters")


def ref_name(schema: Schema) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[-1]


def inner_object(schema: Schema, document: Schema) -> Schema | None:
    """The object with named properties that a schema is, points to, is a list of, or may be."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][ref_name(schema)]
    if "properties" in schema:
        return schema
    options = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    found = [inner for option in options if (inner := inner_object(option, document)) is not None]
    return next(iter(found), None)


def fields(schema: Schema, document: Schema) -> list[Field]:
    """Every field of a body, those of inner objects after the field that holds them, each object told once.

    At the top, if it stands there and holds no object itself: `lora` rather than a place four levels down.
    """
    simple: dict[str, Schema] = {}
    for name, one in schema["properties"].items():
        inner = inner_object(one, document)
        if inner is not None and _is_simple(inner, document) and inner["properties"] not in simple.values():
            simple[name] = inner["properties"]
    return list(_fields(schema, document, "", simple))


def own_fields(schema: Schema) -> list[Field]:
    """The fields of one object, not those of the objects in it."""
    required = schema.get("required", ())
    return [_field(name, inner, name in required) for name, inner in schema.get("properties", {}).items()]


def _fields(schema: Schema, document: Schema, prefix: str, told: dict[str, Schema]) -> Iterator[Field]:
    properties, required = schema["properties"], schema.get("required", ())
    here = prefix.removesuffix(".").removesuffix("[]")
    alike = None if here in told else _described_before(properties, told)
    if alike:
        yield Field(
            f"{prefix}*", "", False, None, f"As in `{alike}`" + ("." if properties == told[alike] else ", and:")
        )
    for name, inner in properties.items():
        if alike and told[alike].get(name) == inner:
            continue
        yield _field(prefix + name, inner, name in required)
        deeper = inner_object(inner, document)
        if deeper is not None:
            mark = "[]." if inner.get("type") == "array" else "."
            yield from _fields(deeper, document, f"{prefix}{name}{mark}", told)
    if prefix and not alike:
        told[here] = properties


def _is_simple(schema: Schema, document: Schema) -> bool:
    return all(inner_object(one, document) is None for one in schema["properties"].values())


def _described_before(properties: Schema, told: Mapping[str, Schema]) -> str | None:
    for path, earlier in told.items():
        same = sum(properties.get(name) == inner for name, inner in earlier.items())
        if same == len(earlier) and same >= MIN_SHARED_FIELDS:
            return path
    return None


def default_of(schema: Schema) -> str | None:
    return json.dumps(schema["default"]) if schema.get("default") is not None else None


def _field(path: str, schema: Schema, required: bool) -> Field:
    return Field(path, type_name(schema), required, default_of(schema), str(schema.get("description", "")))


def _range(schema: Schema) -> str:
    """` from 1 to 50`, ` above 0`."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return "".join(f" {word} {_number(schema[key])}" for key, word in words.items() if _is_bound(schema.get(key)))


def _is_bound(value: float | None) -> bool:
    """The largest number that a database can hold tells a reader nothing."""
    return value is not None and value < MAX_SHOWN_BOUND


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _count(schema: Schema, what: str, unit: str) -> str:
    """` (1 to 64 characters)`, ` (up to 16 pairs)`."""
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if least is None and most is None:
        return ""
    if most is None:
        return f" ({least} {unit} or more)"
    return f" ({least} to {most} {unit})" if least is not None else f" (up to {most} {unit})"
