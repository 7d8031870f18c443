"""`make openapi` writes the snapshot anew; review its diff."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from app.domain.jobs import request_parameters
from app.domain.jobs.create_job import CreateJob, MethodBody
from app.domain.methods import METHODS, OWNERS
from app.main import create_app
from app.settings import Settings
from tests.api_objects import EXAMPLES

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document needs no server."""
    settings = Settings(
        database_url="postgresql://nowhere/x", redis_url="redis://nowhere", data_dir=tmp_path_factory.mktemp("data")
    )
    return create_app(settings).openapi()


def without_examples(value: Any, key: str = "") -> Any:
    """The document without examples, which are reviewed in app/api/openapi/examples.json."""
    if isinstance(value, list):
        return [without_examples(item) for item in value]
    if not isinstance(value, dict):
        return value
    dropped = () if key == "properties" else ("example", "examples")
    return {name: without_examples(inner, name) for name, inner in value.items() if name not in dropped}


def compact(value: Any, levels: int) -> str:
    """JSON with a line for each operation and each schema, which are at the third level."""
    if levels == 0 or not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    lines = [f"{json.dumps(name)}:{compact(inner, levels - 1)}" for name, inner in sorted(value.items())]
    return "{\n" + ",\n".join(lines) + "\n}"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def values_of(schema: dict[str, Any]) -> dict[str, Any]:
    """{field: what its value may be}."""
    beside = ("default", "description", "title")
    fields = schema["properties"].items()
    return {name: {key: value for key, value in field.items() if key not in beside} for name, field in fields}


class TestTheDocument:
    def test_the_document_equals_the_reviewed_snapshot(self, document: dict[str, Any]) -> None:
        reviewed = document | {"info": document["info"] | {"version": "any"}}
        text = compact(without_examples(reviewed), levels=3) + "\n"
        if os.environ.get("TUNERY_WRITE_SNAPSHOTS"):
            SNAPSHOT.write_text(text, encoding="utf-8")
        assert text == SNAPSHOT.read_text(encoding="utf-8"), "the API changed: see this file's first line"

    def test_every_response_and_body_has_an_example(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            for body in (operation["responses"]["200"], operation.get("requestBody", {"content": {}})):
                assert all("example" in content for content in body["content"].values()), name

    def test_the_document_has_no_422_and_no_detail(self, document: dict[str, Any]) -> None:
        assert "422" not in {status for _, operation in operations(document) for status in operation["responses"]}
        assert "ValidationError" not in json.dumps(document)
        assert '"detail"' not in json.dumps({name: o for name, o in operations(document) if "/v1" in name})

    def test_operations_under_v1_require_the_key(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            assert ("security" in operation) == ("/v1" in name)

    def test_operations_with_an_idempotency_key_document_409(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            takes_key = "Idempotency-Key" in {given["name"] for given in operation.get("parameters", ())}
            assert ("409" in operation["responses"]) == takes_key, name

    def test_a_clone_has_the_fields_of_a_create_body_and_requires_none(self, document: dict[str, Any]) -> None:
        create, clone = (document["components"]["schemas"][name] for name in ("CreateJob", "CloneJob"))
        assert values_of(clone) == values_of(create)
        assert all(values_of(clone).values())
        assert "required" not in clone
        assert clone["additionalProperties"] is False

    def test_every_reference_resolves(self, document: dict[str, Any]) -> None:
        for target in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
            assert target in document["components"]["schemas"]

    def test_operation_ids_are_unique(self, document: dict[str, Any]) -> None:
        names = [operation["operationId"] for _, operation in operations(document)]
        assert len(names) == len(set(names))


def test_examples_belong_to_operations(document: dict[str, Any]) -> None:
    assert EXAMPLES.keys() == dict(operations(document)).keys()


class TestRequestParameters:
    def test_the_document_has_those_that_a_request_may_have(self) -> None:
        def names_in(model: type[BaseModel], field: str) -> set[str]:
            return set(model.model_json_schema()["properties"][field]["anyOf"][0]["properties"])

        every = names_in(CreateJob, "hyperparameters")
        assert every == set(request_parameters.IN_HYPERPARAMETERS)
        for method in METHODS:
            own = {name for name in every if method in OWNERS.get(name, (method,))}
            assert names_in(get_args(MethodBody.model_fields[method].annotation)[0], "hyperparameters") == own
        for field, keys in (
            ("lora", request_parameters.LORA_KEYS),
            ("quantization", request_parameters.QUANTIZATION_KEYS),
        ):
            assert names_in(CreateJob, field) == keys.keys()
