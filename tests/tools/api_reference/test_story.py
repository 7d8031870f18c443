"""The recorded examples are those that the service gives now. `make openapi RECORD=1` records them again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.api_objects import EXAMPLES, PATH
from tests.tools.api_reference.story import record
from tools.docs.reference import document


def same_shape(one: Any, other: Any) -> bool:
    """Whether two values have the same keys and types. Null fits every type."""
    if one is None or other is None:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_shape(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return all(same_shape(*pair) for pair in zip(one, other, strict=False))
    numbers = (int, float)
    return type(one) is type(other) or (isinstance(one, numbers) and isinstance(other, numbers))


def test_every_parameter_of_a_path_and_every_body_is_recorded() -> None:
    for operation, recorded in EXAMPLES.items():
        method, path = operation.split(" ")
        documented = document()["paths"][path][method.lower()]
        in_path = {each["name"] for each in documented.get("parameters", ()) if each["in"] == "path"}
        assert in_path <= recorded.get("parameters", {}).keys(), operation
        assert ("requestBody" in documented) == ("request" in recorded), operation


@pytest.mark.extended("the story of all operations, with a job, an evaluation and an export of the 135M model")
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_a_new_recording_has_the_same_shape(subtests: pytest.Subtests) -> None:
    recorded = record()
    if os.environ.get("TUNERY_WRITE_SNAPSHOTS"):
        ordered = {operation: recorded[operation] for operation in sorted(recorded)}
        PATH.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    assert recorded.keys() == EXAMPLES.keys()
    for operation, example in recorded.items():
        with subtests.test(operation):
            assert same_shape(EXAMPLES[operation], example)
