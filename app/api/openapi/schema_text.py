"""Text for JSON schemas: the name of a type, and the fields of an object as rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
MAX_SHOWN_BOUND = 1 << 53
MIN_SHARED_FIELDS = 4  # an object with this many fields of an earlier one is described by its additions


@dataclass(frozen=True)
class FieldRow:
    """One row of a table of fields."""

    path: str  # dotted: lora.r
    type: str
    required: bool
    default: str | None
    description: str


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
        return " or ".join(type_name({**schema, "type": name}) for name in schema["type"])
    return str(schema.get("type", "anything")) + _range(schema) + _count(schema, "Length", "characters")


def ref_name(schema: Schema) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[-1]


def inner_object(schema: Schema, document: Schema) -> Schema | None:
    """The object schema with properties that `schema` is, references, has as items, or has as an option."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][ref_name(schema)]
    if "properties" in schema:
        return schema
    options = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return next((inner for option in options if (inner := inner_object(option, document)) is not None), None)


def fields(schema: Schema, document: Schema) -> list[FieldRow]:
    """All fields of a body. The fields of an inner object follow its field, and each object is described once.

    An object without inner objects is described at the top level if it is there: `lora`, not a path with four parts.
    """
    simple: dict[str, Schema] = {}
    for name, property_schema in schema["properties"].items():
        inner = inner_object(property_schema, document)
        if inner is not None and _is_simple(inner, document) and inner["properties"] not in simple.values():
            simple[name] = inner["properties"]
    return list(_fields(schema, document, "", simple))


def own_fields(schema: Schema) -> list[FieldRow]:
    """The fields of one object, without those of inner objects."""
    required = schema.get("required", ())
    return [_field(name, inner, name in required) for name, inner in schema.get("properties", {}).items()]


def _fields(schema: Schema, document: Schema, prefix: str, described: dict[str, Schema]) -> Iterator[FieldRow]:
    properties, required = schema["properties"], schema.get("required", ())
    here = prefix.removesuffix(".").removesuffix("[]")
    similar = None if here in described else _described_before(properties, described)
    if similar:
        yield FieldRow(
            f"{prefix}*",
            "",
            False,
            None,
            f"As in `{similar}`" + ("." if properties == described[similar] else ", and:"),
        )
    for name, inner in properties.items():
        if similar and described[similar].get(name) == inner:
            continue
        yield _field(prefix + name, inner, name in required)
        deeper = inner_object(inner, document)
        if deeper is not None:
            mark = "[]." if inner.get("type") == "array" else "."
            yield from _fields(deeper, document, f"{prefix}{name}{mark}", described)
    if prefix and not similar:
        described[here] = properties


def _is_simple(schema: Schema, document: Schema) -> bool:
    return all(inner_object(inner, document) is None for inner in schema["properties"].values())


def _described_before(properties: Schema, described: Mapping[str, Schema]) -> str | None:
    """The path of an object that was described before and whose fields `properties` contains."""
    for path, earlier in described.items():
        same = sum(properties.get(name) == inner for name, inner in earlier.items())
        if same == len(earlier) and same >= MIN_SHARED_FIELDS:
            return path
    return None


def default_of(schema: Schema) -> str | None:
    return json.dumps(schema["default"]) if schema.get("default") is not None else None


def _field(path: str, schema: Schema, required: bool) -> FieldRow:
    return FieldRow(path, type_name(schema), required, default_of(schema), str(schema.get("description", "")))


def _range(schema: Schema) -> str:
    """` from 1 to 50`, ` above 0`."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return "".join(f" {word} {_number(schema[key])}" for key, word in words.items() if _is_shown_bound(schema.get(key)))


def _is_shown_bound(value: float | None) -> bool:
    """Whether a bound is worth showing: the maximum of a database column is not."""
    return value is not None and value < MAX_SHOWN_BOUND


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _count(schema: Schema, what: str, unit: str) -> str:
    """` (1 to 64 characters)`, ` (up to 16 pairs)`."""
    minimum, maximum = schema.get(f"min{what}"), schema.get(f"max{what}")
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f" ({minimum} {unit} or more)"
    return f" ({minimum} to {maximum} {unit})" if minimum is not None else f" (up to {maximum} {unit})"
