"""The code leaves nothing in the reference unsaid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs

from app.api.openapi import request_examples, schema_text
from app.domain.access import scopes
from tools.docs.reference import document

COMPONENT = re.compile(r'"#/components/schemas/([^"]+)"')
REPEATED = ("4", "5")  # the first digit of statuses whose response is the same for all operations


@lru_cache
def operations() -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
    }


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what it is, content) of every body that an operation takes or answers with."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"body {media_type}", content
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items():
            of_each_event = {"schema": content["itemSchema"]} if "itemSchema" in content else {}
            yield f"{status} {media_type}", content | of_each_event


class TestEveryOperation:
    def test_an_operation_has_a_summary_of_its_own_and_a_description(self) -> None:
        texts = [(each.get("summary"), each.get("description")) for each in operations().values()]
        named = dict(zip(operations(), texts, strict=True))
        assert [name for name, both in named.items() if not all(both)] == [], "give the route a summary and a docstring"
        assert len({summary for summary, _ in texts}) == len(texts), "two have one summary, and so one anchor"

    def test_an_operation_has_a_schema_and_an_example_of_its_response(self) -> None:
        without_success = [
            name for name, each in operations().items() if not any(code[0] == "2" for code in each["responses"])
        ]
        assert without_success == []
        missing = [
            f"{name}: {what}"
            for name, operation in operations().items()
            for what, content in contents(operation)
            # of bytes of any type there is no schema
            if not (content.get("schema") or what.endswith(" */*"))
            or ("example" not in content and not what.startswith(REPEATED))
        ]
        assert missing == [], "give the route a response_model, and its example into app/api/openapi/examples.json"

    def test_an_example_is_valid_by_its_schema(self) -> None:
        errors = {
            f"{name}: {what}": error.message
            for name, operation in operations().items()
            for what, content in contents(operation)
            if "example" in content and "json" in what and not what.startswith(REPEATED)
            for error in _validator(content["schema"]).iter_errors(content["example"])
        }
        assert errors == {}

    def test_a_parameter_and_a_field_have_a_description(self) -> None:
        silent = [f"{name}: {field}" for name, operation in operations().items() for field in unexplained(operation)]
        silent += [
            f"{name}: {row.path}"
            for name, schema in document()["components"]["schemas"].items()
            for row in schema_text.own_fields(schema)
            if not row.description
        ]
        assert silent == [], "give them a description (Field, Query), or a line in app/api/openapi/descriptions.py"

    def test_the_scope_of_an_operation_is_one_of_keys(self) -> None:
        unknown = {each.get("x-scope") for each in operations().values()} - {None, *scopes.SCOPES}
        assert unknown == set(), "give the path an area in app/domain/access/scopes.py"

    def test_the_example_of_an_operation_fills_its_path(self) -> None:
        for name, operation in operations().items():
            method, path = name.split(" ", 1)
            assert "{" not in request_examples.example_request(method, path, operation, document()).path, name


def unexplained(operation: dict[str, Any]) -> Iterator[str]:
    """The parameters and fields of an operation that lack a description."""
    yield from (each["name"] for each in operation.get("parameters", ()) if not each.get("description"))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = schema_text.inner_object(content["schema"], document())
        rows = schema_text.fields(body, document()) if body else []
        yield from (row.path for row in rows if not row.description)


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """Checks with those components alone that the schema needs: all of them take 70 ms to be read."""
    needed: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in COMPONENT.findall(json.dumps(waiting.pop())):
            if name not in needed:
                needed[name] = document()["components"]["schemas"][name]
                waiting.append(needed[name])
    return jsonschema_rs.validator_for(schema | {"components": {"schemas": needed}})
