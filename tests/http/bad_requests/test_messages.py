"""Hostile values in every field and parameter of the OpenAPI document: every message is one for a JSON API."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from app.db.tables import Job
from app.domain.error_text.validation_text import DEFAULT_RULE
from tests.lanes import Sampled
from tests.python_words import python_words

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 1e308, "x", "a\n\u202eb", "x" * 3_000, ["x"], [None], {"x": None},
    {f"k{at}": [True] for at in range(40)},
)  # fmt: skip
WORDS = ("", "x", "it's", "-1", "1.5", "9" * 30, "NaN", "null", "[]", "x" * 3_000, "%0a%e2%80%ae", "%ff")
CREATE = "/v1/fine_tuning/jobs"
# Objects within objects are tried here alone: a plan and a clone read them in the same way.
DEPTHS = {CREATE: 5, f"{CREATE}/plan": 1, f"{CREATE}/{{job_id}}/clone": 1}


class TestEveryMessage:
    def test_messages_about_bodies_use_json_terms(
        self, admin: TestClient, app: FastAPI, succeeded: Job, training_file: str, sampled: Sampled
    ) -> None:
        document, said = app.openapi(), set()
        ids = {"job_id": succeeded.id, "project_id": succeeded.project_id, "model": succeeded.fine_tuned_model or ""}
        for method, path, operation in operations(document):
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            given = dict(content.get("example") or {}) | ({"training_file": training_file} if "jobs" in path else {})
            depth = DEPTHS.get(path, 2)
            for body in sampled(hostile_bodies(resolved(content["schema"], document, depth), given)):
                answer = admin.request(method, url_of(path, ids), json=body)
                said |= {(f"{method} {path}", message) for message in problems_of(answer)}
        assert len(said) > (300 if sampled is list else 100)
        check(said)

    def test_messages_about_queries_use_json_terms(
        self, admin: TestClient, app: FastAPI, succeeded: Job, sampled: Sampled
    ) -> None:
        said = set()
        for method, path, operation in sampled(operations(app.openapi())):
            for parameter in operation.get("parameters", ()):
                for word in WORDS if parameter["in"] == "query" else ():
                    url = f"{url_of(path, {'job_id': succeeded.id})}?{parameter['name']}={word}"
                    if not path.endswith("/stream"):
                        said |= {(f"{method} {path}", message) for message in problems_of(admin.request(method, url))}
        assert len(said) > (50 if sampled is list else 5)
        check(said)


def check(said: set[tuple[str, str]]) -> None:
    if os.environ.get("TUNERY_SHOW_MESSAGES"):
        print("\n".join(sorted({message for _, message in said})))
    bad = [(name, message, python_words(message)) for name, message in said if python_words(message)]
    assert not bad, bad[:5]
    assert not [message for _, message in said if DEFAULT_RULE in message]
    assert not [message for _, message in said if not message.isprintable()]


def problems_of(answer: Any) -> Iterator[str]:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert len(error["param"] or "") < 300
        yield from error["message"].split("; ")


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def url_of(path: str, ids: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)(:path)?\}", lambda found: ids.get(found[1], "nothere"), path)


def resolved(schema: Any, document: dict[str, Any], depth: int) -> dict[str, Any]:
    """{field: fields inside it} of an object, whichever of its alternatives they stand in."""
    if depth == 0:
        return {}
    if "$ref" in schema:
        return resolved(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, depth)
    found = {name: resolved(inner, document, depth - 1) for name, inner in schema.get("properties", {}).items()}
    for alternative in schema.get("anyOf", ()):
        found |= resolved(alternative, document, depth)
    return found


def hostile_bodies(fields: dict[str, Any], given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in [*paths(fields), ("unknown",)]:
        for value in HOSTILE if len(path) == 1 else HOSTILE[::2]:
            body = copy.deepcopy(given)
            place = body
            for name in path[:-1]:
                inner = place.get(name)
                place[name] = inner if isinstance(inner, dict) else {}
                place = place[name]
            place[path[-1]] = value
            yield json.loads(json.dumps(body))


def paths(fields: dict[str, Any], begin: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in fields.items():
        if name == "supervised":
            continue  # what it holds stands in `dpo`, too
        yield (*begin, name)
        yield from paths(inner, (*begin, name))
