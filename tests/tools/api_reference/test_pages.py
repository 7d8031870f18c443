"""The committed reference is what the code makes, and the code leaves nothing in it unsaid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from app.api.openapi import request_examples, schema_text
from app.domain.access import scopes
from tools.api_reference.__main__ import DOCS, document, reference

DOCUMENT = document()
REFERENCE = reference()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
AGAIN = "the API has changed: `make reference` (python -m tools.api_reference) writes the pages anew; review their diff"


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what it is, content) of every body that an operation takes or answers with."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"body {media_type}", content
    for status, answer in operation["responses"].items():
        for media_type, content in answer.get("content", {}).items():
            of_each_event = {"schema": content["itemSchema"]} if "itemSchema" in content else {}
            yield f"{status} {media_type}", content | of_each_event


class TestTheCommittedPages:
    @pytest.mark.parametrize("name", sorted(REFERENCE))
    def test_are_what_the_code_makes(self, name: str) -> None:
        page = DOCS / name
        assert page.exists(), f"docs/{name} is missing: {AGAIN}"
        assert page.read_text(encoding="utf-8") == REFERENCE[name], f"docs/{name}: {AGAIN}"

    def test_are_all_there_is(self) -> None:
        there = {f"reference/{path.name}" for path in (DOCS / "reference").iterdir()}
        assert there == {name for name in REFERENCE if name.startswith("reference/")}, AGAIN


class TestAPage:
    def test_describes_common_errors_once(self) -> None:
        row = "| 401 | No API key, or an invalid one. |"
        assert [name for name, text in REFERENCE.items() if row in text] == ["reference/README.md"]

    def test_shows_the_scope_and_the_own_errors_of_an_operation(self) -> None:
        page = REFERENCE["reference/models.md"]
        assert "`DELETE /v1/models/{model}` · scope `models:write`" in page
        assert "| 403 | The model is a base model or belongs to another project" in page
        assert "error-responses): 400, 401, 404, 429, 503." in page

    def test_begins_with_operations_without_a_path_parameter(self) -> None:
        page = REFERENCE["reference/fine-tuning.md"]
        assert page.index("## Create a job\n") < page.index("## List jobs\n") < page.index("## Get a job\n")


@pytest.mark.parametrize("name", OPERATIONS)
class TestEveryOperation:
    def test_has_a_summary_of_its_own_and_a_description(self, name: str) -> None:
        summary = OPERATIONS[name].get("summary", "")
        assert summary, f"{name} has no summary: give its route one"
        assert OPERATIONS[name].get("description"), f"{name} has no description: its function lacks a docstring"
        others = [other for other, one in OPERATIONS.items() if one["summary"] == summary]
        assert others == [name], f"{others} have one summary, and so one anchor"

    def test_says_what_it_answers_with_and_shows_it(self, name: str) -> None:
        successes = {status: one for status, one in OPERATIONS[name]["responses"].items() if status.startswith("2")}
        assert successes, f"{name} documents no success"
        for what, content in contents(OPERATIONS[name]):
            is_said = content.get("schema") or what.endswith(" */*")  # of bytes of any type there is no schema
            assert is_said, f"{name}: {what} has no schema: give its route a response_model"
            if "example" not in content and not what.startswith(("4", "5")):
                pytest.fail(f"{name}: {what} has no example: put one into app/api/openapi/examples.json")

    def test_shows_only_what_its_schema_allows(self, name: str) -> None:
        for what, content in contents(OPERATIONS[name]):
            if "example" in content and "json" in what:
                schema = content["schema"] | {"components": DOCUMENT["components"]}
                errors = [
                    error.message for error in jsonschema_rs.validator_for(schema).iter_errors(content["example"])
                ]
                assert not errors, f"{name}: the example of {what}"

    def test_says_what_every_parameter_and_field_means(self, name: str) -> None:
        operation = OPERATIONS[name]
        silent = [one["name"] for one in operation.get("parameters", ()) if not one.get("description")]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            body = schema_text.inner_object(content["schema"], DOCUMENT)
            rows = schema_text.fields(body, DOCUMENT) if body else []
            silent += [row.path for row in rows if not row.description]
        assert silent == [], (
            f"{name}: give them a description (Field, Query), or a line in app/api/openapi/descriptions.py"
        )

    def test_takes_a_scope_that_a_key_can_have(self, name: str) -> None:
        scope = OPERATIONS[name].get("x-scope")
        assert scope is None or scope in scopes.SCOPES, f"{name}: give its path an area in app/domain/access/scopes.py"

    def test_can_be_sent_with_curl(self, name: str) -> None:
        method, path = name.split(" ", 1)
        assert "{" not in request_examples.example_request(method, path, OPERATIONS[name], DOCUMENT).path


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_every_field_of_an_object_has_a_meaning(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    silent = [row.path for row in schema_text.own_fields(schema) if not row.description]
    assert silent == [], f"{name}: give them a description (Field), or a line in app/api/openapi/descriptions.py"
