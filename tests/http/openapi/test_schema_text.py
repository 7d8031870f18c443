from __future__ import annotations

from typing import Any

import pytest

from app.api.openapi import schema_text
from app.api.openapi.request_examples import _literal, json_text

INNER = {"properties": {name: {"type": "integer"} for name in "abcd"}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 50}, "integer from 1 to 50"),
        ({"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]}, '"auto" or number above 0'),
        ({"type": "string", "minLength": 1, "maxLength": 64}, "string (1 to 64 characters)"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 4}, "list of string (up to 4 of them)"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, 'list of any of "a", "b"'),
        ({"type": "number", "minimum": 0.0, "maximum": 0.5}, "number from 0 to 0.5"),
        ({"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}, "integer from 0"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"type": "string", "contentMediaType": "application/octet-stream"}, "bytes"),
        ({"$ref": "#/components/schemas/JobBody"}, "JobBody"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"enum": [4, 8]}, "4, 8"),
        ({}, "anything"),
    ],
)
def test_a_schema_is_described_in_a_few_words(schema: dict[str, Any], said: str) -> None:
    assert schema_text.type_name(schema) == said


class TestFields:
    def test_fields_of_inner_objects_follow_their_field(self) -> None:
        document = {"components": {"schemas": {"Inner": {"properties": {"x": {}}}}}}
        schema = {
            "properties": {"one": {"$ref": "#/components/schemas/Inner"}, "many": {"type": "array", "items": INNER}}
        }
        paths = [row.path for row in schema_text.fields(schema, document)]
        assert paths == ["one", "one.x", "many", "many[].a", "many[].b", "many[].c", "many[].d"]

    def test_an_object_is_described_once(self) -> None:
        more = {"properties": INNER["properties"] | {"e": {"type": "string"}}}
        schema = {"properties": {"first": INNER, "same": INNER, "outer": {"properties": {"more": more}}}}
        described = [(row.path, row.description) for row in schema_text.fields(schema, {})][5:]
        assert described == [
            ("same", ""), ("same.*", "As in `first`."), ("outer", ""), ("outer.more", ""),
            ("outer.more.*", "As in `first`, and:"), ("outer.more.e", ""),
        ]  # fmt: skip

    def test_a_simple_object_is_described_at_the_top_level(self) -> None:
        deep = {"properties": {"again": INNER}}
        paths = [row.path for row in schema_text.fields({"properties": {"deep": deep, "top": INNER}}, {})]
        assert paths == ["deep", "deep.again", "deep.again.*", "top", "top.a", "top.b", "top.c", "top.d"]


VALUE = {"text": "is true, or null", "yes": True, "nothing": None, "numbers": list(range(40))}


def test_a_value_is_written_as_python_writes_it() -> None:
    assert eval(_literal(VALUE)) == VALUE


def test_a_value_is_written_as_json() -> None:
    import json

    assert json.loads(json_text(VALUE)) == VALUE
