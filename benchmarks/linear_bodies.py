"""Hostile bodies for every operation with a body, derived from the OpenAPI document.

Each long string, list and object of a body is filled to any size; the rest of the body is the least that its schema
requires. A field that several operations have in common is filled for the first of them. EXCEPTIONS names the
operations that are not asked, with the reason; `MORE` has bodies that no schema describes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

JSON = "application/json"
MOST_BYTES = 1 << 20  # of most bodies
MOST_CHAT_BYTES = 2 << 20
LEAST_LONG_CHARACTERS = 4096  # a string with a lower limit is refused by its length
EXCEPTIONS = {
    "POST /v1/files": "a form: its parser is among those of make bench-linear",
    "POST /v1/uploads/{upload_id}/parts": "a form, read by the same parser",
    "PUT /v1/uploads/{upload_id}/content": "bytes that are stored and not read",
}
Schema = Mapping[str, Any]
Place = Callable[[Any], Any]  # puts a value into a body


@dataclass(frozen=True)
class Body:
    """Bodies of any size up to `most_bytes` for one operation; `name` says what is large in them."""

    operation: str
    name: str
    make: Callable[[int], bytes]
    most_bytes: int = MOST_BYTES


def operations(document: Schema) -> dict[str, Schema]:
    """The schema of the JSON body by `METHOD /path`; empty if it has a body of another type."""
    return {
        f"{method.upper()} {path}": operation["requestBody"]["content"].get(JSON, {}).get("schema", {})
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }


def bodies(document: Schema, known: Mapping[str, Any]) -> Iterator[Body]:
    """All hostile bodies. `known` has values of fields that name an object, by the field's name.

    Raises ValueError for an operation that has no JSON body and no exception, and for an exception too many.
    """
    schemas = operations(document)
    without_json = {operation for operation, schema in schemas.items() if not schema}
    if without_json != EXCEPTIONS.keys():
        raise ValueError(f"EXCEPTIONS must name {sorted(without_json)}, and not {sorted(EXCEPTIONS)}")
    walk = _Walk(document["components"]["schemas"], known)
    for operation, schema in schemas.items():
        if schema:
            for name, make, most_bytes in walk.fillings(schema):
                yield Body(operation, name[-60:], make, most_bytes)
            yield from MORE.get(operation, ())


class _Walk:
    def __init__(self, schemas: Mapping[str, Schema], known: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._known = known
        self._seen: set[tuple[str, str]] = set()  # fields that were filled before: name and schema

    def fillings(
        self, schema: Schema, name: str = "body", place: Place = lambda value: value
    ) -> Iterator[tuple[str, Callable[[int], bytes], int]]:
        """What is large, bodies of any size, and their largest size."""
        field = name.rsplit(".", 1)[-1], json.dumps(schema, sort_keys=True)
        if (field in self._seen and name != "body") or schema.keys() & {"enum", "const"}:
            return
        self._seen.add(field)
        schema = self._resolved(schema)
        if variants := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            for variant in variants:
                yield from self.fillings(variant, name, place)
            return
        kind = _kind(schema)
        if kind == "object":
            least = self.least(schema)
            yield f"{name}: many keys", _sized(place, lambda count: least | _keys(count), 10), MOST_BYTES
            for key, inner in schema.get("properties", {}).items():
                yield from self.fillings(inner, f"{name}.{key}", _into(place, least, key))
        elif kind == "array":
            items = schema.get("items", {})
            least = self.least(items)
            yield f"{name}: many items", _sized(place, lambda count: [least] * count, _bytes(least)), MOST_BYTES
            yield f"{name}: many zeros", _sized(place, lambda count: [0] * count, 1), MOST_BYTES
            yield from self.fillings(items, f"{name}[]", lambda value: place([value]))
        elif kind == "string" and (most := schema.get("maxLength", MOST_BYTES)) >= LEAST_LONG_CHARACTERS:
            for text in ("{", "a "):
                make = _sized(place, lambda count, text=text: text * count, len(text) - 1)
                yield f"{name}: {text!r}", make, min(MOST_BYTES, most)

    def least(self, schema: Schema, name: str = "") -> Any:
        """The smallest valid value, as far as the schema says what is valid."""
        schema = self._resolved(schema)
        if name in self._known:
            return self._known[name]
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        if variants := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            return self.least(variants[0])
        kind = _kind(schema)
        if kind == "object":
            properties = schema.get("properties", {})
            return {key: self.least(properties[key], key) for key in schema.get("required", ())}
        if kind == "array":
            return [self.least(schema.get("items", {}))] * schema.get("minItems", 1)
        if kind == "string":
            return "x" * schema.get("minLength", 1)
        return {"boolean": False, "null": None}.get(kind, schema.get("minimum", 1))

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rsplit("/", 1)[1]]
        return schema


def _kind(schema: Schema) -> str:
    """The JSON type; a schema without one takes any, so also an object."""
    kind = schema.get("type", "object")
    return str(kind if isinstance(kind, str) else kind[0])


def _into(place: Place, least: Mapping[str, Any], key: str) -> Place:
    return lambda value: place({**least, key: value})


def _keys(count: int) -> dict[str, int]:
    return {f"key{number}": 0 for number in range(count)}


def _bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _sized(place: Place, value: Callable[[int], Any], unit_bytes: int) -> Callable[[int], bytes]:
    """Bodies with as many units (and a separator each) as fit: the value of 0 units takes the rest."""
    rest = _bytes(place(value(0)))

    def make(size_bytes: int) -> bytes:
        count = max(1, (size_bytes - rest) // (unit_bytes + 1))
        data = json.dumps(place(value(count)), separators=(",", ":")).encode()
        while len(data) > size_bytes and count > 1:  # keys get longer
            count = count * size_bytes // len(data) - 1
            data = json.dumps(place(value(count)), separators=(",", ":")).encode()
        return data

    return make


def _chat(field: str, item: Any, is_repeated: bool = True) -> Body:
    def place(value: Any) -> Any:
        return {"model": "tiny", "messages": [{"role": "user", "content": "a"}], field: value}

    value = (lambda count: [item] * count) if is_repeated else (lambda count: item(count))
    name = f"{field}: {json.dumps(item)[:30] if is_repeated else 'one large value'}"
    make = _sized(place, value, _bytes(item) if is_repeated else 10)
    return Body("POST /v1/chat/completions", name, make, MOST_CHAT_BYTES)


def _patterns(count: int) -> Any:
    """A schema of `count` patterns, each of 30 bytes."""
    schema = {"allOf": [{"type": "string", "pattern": f".*{number}.*"} for number in range(count // 4)]}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _graders(template: str, prefix: Mapping[str, Any]) -> Callable[[int], bytes]:
    """Bodies with two graders of 25 messages each, which share the size."""

    def make(size_bytes: int) -> bytes:
        text = template * max(1, (size_bytes - 4096) // 50 // len(template))
        judge = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": text}] * 25}
        evaluation = {"file": "x", "graders": [judge | {"name": name} for name in "ab"]}
        return json.dumps({**prefix, "evaluation": evaluation} if prefix else evaluation).encode()

    return make


PLAN = {"model": "tiny", "training_file": "x"}
TEMPLATES = {"unclosed": "{", "paths": "{{ item.a }}", "long paths": ".a", "closed first": "}}{{"}
MORE: dict[str, list[Body]] = {
    operation: [
        Body(operation, f"templates: {name}", _graders(text, prefix), 1_000_000) for name, text in TEMPLATES.items()
    ]
    for operation, prefix in (
        ("POST /v1/fine_tuning/jobs/plan", PLAN),
        ("POST /v1/fine_tuning/jobs/{job_id}/evaluations", {}),
    )
} | {
    "POST /v1/chat/completions": [
        _chat("messages", 1),
        _chat("messages", {}),
        _chat("messages", {"role": "user", "content": "a"}),
        _chat("messages", {"role": "user", "content": [{"type": "image"}]}),
        _chat("tools", {"type": "function", "function": {"name": "f"}}),
        _chat("stop", "a"),
        _chat("response_format", _patterns, is_repeated=False),
        _chat("logit_bias", lambda count: {str(number): 1 for number in range(count)}, is_repeated=False),
    ]
}
