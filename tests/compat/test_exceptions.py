"""The table of exceptions, held to the earlier OpenAPI document and to today's."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.compat.earlier import COMMIT
from tools.checkout import HOW_TO_FETCH, ROOT, git, is_in_history

SNAPSHOT = ROOT / "tests" / "app" / "api" / "openapi" / "openapi.json"
EARLIER_SNAPSHOT = "tests/app/api/openapi.json"
TABLE = Path(__file__).with_name("exceptions.toml")


def schemas(document: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document)["components"]["schemas"]
    return found


@pytest.mark.skipif(not is_in_history(COMMIT), reason=HOW_TO_FETCH)
def test_excepts_exactly_the_fields_that_the_earlier_schemas_forbid() -> None:
    today = schemas(SNAPSHOT.read_bytes())
    forbidden = {
        (name, field)
        for name, earlier in schemas(git("show", f"{COMMIT}:{EARLIER_SNAPSHOT}")).items()
        if earlier.get("additionalProperties") is False
        for field in today[name]["properties"].keys() - earlier["properties"].keys()
    }
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))["response_field"]
    assert {(excepted["schema"], excepted["field"]) for excepted in table} == forbidden
    assert all(excepted["reason"] for excepted in table)


@pytest.mark.skipif(not is_in_history(COMMIT), reason=HOW_TO_FETCH)
def test_excepts_only_tests_of_the_earlier_commit() -> None:
    for excepted in tomllib.loads(TABLE.read_text(encoding="utf-8"))["test"]:
        path, *_, name = excepted["id"].split("::")
        assert f"def {name}(".encode() in git("show", f"{COMMIT}:{path}")
        assert excepted["reason"]
