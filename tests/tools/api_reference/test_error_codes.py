"""The page of errors against the code: every code, its status, its message, and what the client makes of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from app import errors
from app.api.error_handlers import codes_with_an_entry
from app.db.engine import Sessions, transaction
from app.db.tables import Project
from app.domain.jobs.states import JobState, Reason
from app.main import create_app
from app.services.access import keys
from app.services.files import uploads
from app.settings import Settings
from app.storage import LocalStorage
from tools.docs.errors_page import Response, errors_page, exception_of, responses

ROOT = Path(__file__).parents[3]
SOURCES = [path for room in ("app", "worker") for path in (ROOT / room).rglob("*.py") if "reference" not in path.parts]
RESPONSES = list(responses())
CODES = {each.error.code: each for each in RESPONSES}


def error_classes(root: type[errors.TuneryError] = errors.TuneryError) -> list[type[errors.TuneryError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in error_classes(child))]


@lru_cache(maxsize=1)
def codes_in_the_source() -> dict[str, str]:
    """{code: where} of every literal that is given to an error as its code."""
    names = {one.__name__ for one in error_classes()}
    found: dict[str, str] = {}
    for path in SOURCES:
        if path.parts[-2] == "cli" or "local" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for value in literals_of(node, names):
                found.setdefault(value, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def literals_of(node: ast.AST, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        given += node.args[2:3] if called in names | {"refuse"} else []
        yield from (text for value in given for text in texts(value))
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == "code":
                yield from texts(node.value)
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)  # a starred value stands for several
                yield from (t for name, value in pairs if getattr(name, "id", "") == "code" for t in texts(value))


def texts(value: ast.AST) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    if isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)


class TestTheClasses:
    def test_every_code_that_is_raised_is_declared(self) -> None:
        assert {code: where for code, where in codes_in_the_source().items() if code not in CODES} == {}

    def test_every_declared_code_is_raised(self) -> None:
        defaults = {each.code for each in error_classes()}
        assert CODES.keys() - codes_in_the_source().keys() - defaults == set()
        assert len(CODES) == len(RESPONSES)


FAILURES = [reason for reason in Reason if reason.final_state is JobState.FAILED]


def test_every_reason_that_fails_a_job_has_a_remedy_and_a_message() -> None:
    assert [reason for reason in FAILURES if not (reason.remedy and reason.message)] == []


class TestTheOfficialClient:
    @pytest.mark.parametrize("one", {each[:3]: each for each in RESPONSES}.values(), ids=lambda each: each.error.code)
    def test_the_client_raises_and_retries_what_the_page_says(self, one: Response) -> None:
        headers = {"retry-after-ms": "1"} | ({"x-should-retry": "false"} if one.is_final else {})
        asked: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            asked.append(request)
            return httpx2.Response(one.status, headers=headers, json={"error": {"message": "no"}})

        with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
            client = openai.OpenAI(api_key="k", base_url="http://server/v1", http_client=http)
            with pytest.raises(openai.APIStatusError) as raised:
                client.models.list()
        assert type(raised.value).__name__ == exception_of(one.status)
        assert len(asked) == (3 if one.is_retried else 1)


def test_an_archived_project_gets_no_key(client: TestClient, sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        admin = {"Authorization": f"Bearer {keys.issue(session, project, 'admin', keys.ADMIN_SCOPES).secret}"}
    old = client.post("/v1/organization/projects", json={"name": "old"}, headers=admin).json()["id"]
    path = f"/v1/organization/projects/{old}"
    client.post(f"{path}/archive", headers=admin)
    answer = client.post(f"{path}/api_keys", json={"name": "late", "scopes": ["all"]}, headers=admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_project_state")


def test_content_from_two_places_is_taken_from_the_later_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = uploads.begin_writing  # the other one begins as soon as this one has begun
    monkeypatch.setattr(uploads, "begin_writing", lambda *given: (begin(*given), begin(*given))[0])
    asked = {"filename": "a.txt", "purpose": "user_data", "bytes": 10, "mime_type": "text/plain"}
    upload = client.post("/v1/uploads", json=asked).json()["id"]
    answer = client.put(f"/v1/uploads/{upload}/content", content=b"0123456789")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upload_taken_over")


def test_the_page_names_every_type_that_an_error_can_have() -> None:
    sentence = errors_page().partition("`type` is ")[2].partition("`doc_url`")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == {one.type for one in error_classes()}


class TestDocUrl:
    def test_an_error_names_the_entry_of_its_code(self, client: TestClient) -> None:
        for path, code in (("/v1/files/file-none", "not_found"), ("/nowhere", "unknown_url"), ("/%00", "unknown_url")):
            error = client.get(path).json()["error"]
            assert (error["code"], error["doc_url"]) == (code, f"/docs/reference/errors/#{code}")

    def test_the_page_of_errors_has_an_entry_of_each_code(self) -> None:
        entries = re.findall(r"^#{3,4} `(\w+)`$", errors_page(), re.MULTILINE)
        assert codes_with_an_entry() <= set(entries)

    def test_a_server_that_shows_no_documentation_names_none(self, settings: Settings, storage: LocalStorage) -> None:
        closed = settings.model_copy(update={"docs_enabled": False})
        with TestClient(create_app(closed, storage=storage)) as client:
            assert client.get("/nowhere").json()["error"]["doc_url"] is None
