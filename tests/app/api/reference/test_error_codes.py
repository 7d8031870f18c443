"""The page of errors against the code: every code, its status, its message, and what the client makes of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from app import errors
from app.api.reference.error_codes import ANSWERS
from app.api.reference.errors_page import exception_of, is_retried
from app.api.reference.job_errors import ENDINGS, JOB_ERRORS
from app.db.engine import transaction
from app.domain import catalog
from app.domain.states import FINAL_STATE, JobState, Reason
from app.services import counting
from tests.factories import chat_lines, make_project, make_succeeded_job

ROOT = Path(__file__).parents[4]
SOURCES = [path for room in ("app", "worker") for path in (ROOT / room).rglob("*.py") if "reference" not in path.parts]
CODES = {one.code: one for one in ANSWERS}
ANYTHING = "…"
JSON = {"Content-Type": "application/json"}


def error_classes(root: type[errors.TuneryError] = errors.TuneryError) -> list[type[errors.TuneryError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in error_classes(child))]


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
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from (t for name, value in pairs if getattr(name, "id", "") == "code" for t in texts(value))


def texts(value: ast.AST) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    if isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)


@lru_cache(maxsize=1)
def sentences() -> list[str]:
    """Every text of the source as it can be said, with `…` for what is filled in."""
    said = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(one.value) if isinstance(one, ast.Constant) else ANYTHING for one in node.values)
                said.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    return [one for one in said if len(one.replace(ANYTHING, "").split()) >= 3]


def as_pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split(ANYTHING))


class TestTheList:
    def test_has_every_code_that_the_code_gives(self) -> None:
        missing = {code: where for code, where in codes_in_the_source().items() if code not in CODES}
        assert missing == {}, "tell of them in app/api/reference/error_codes.py, then `make reference`"

    def test_has_no_code_that_nothing_gives(self) -> None:
        by_class = {str(one.code) for one in error_classes()}
        assert CODES.keys() - codes_in_the_source().keys() - by_class == set()

    @pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
    def test_has_the_status_of_every_class(self, error: type[errors.TuneryError]) -> None:
        assert error.code in CODES, "tell of it in app/api/reference/error_codes.py, then `make reference`"
        assert CODES[str(error.code)].status == error.status

    def test_names_each_code_once_with_cause_and_remedy(self) -> None:
        assert len(CODES) == len(ANSWERS)
        for one in (*ANSWERS, *JOB_ERRORS.values()):
            assert one.cause.endswith((".", "..."))
            assert one.remedy.endswith((".", "..."))
            assert one.message

    def test_has_every_reason_that_ends_an_attempt(self) -> None:
        failed = {reason for reason in Reason if FINAL_STATE[reason] is JobState.FAILED}
        assert JOB_ERRORS.keys() == failed
        assert ENDINGS.keys() == set(Reason) - failed

    @pytest.mark.parametrize("reason", JOB_ERRORS)
    def test_shows_a_message_that_the_code_can_say(self, reason: Reason) -> None:
        message = JOB_ERRORS[reason].message
        said = [one for one in sentences() if re.search(as_pattern(one.rstrip(".")), message)]
        assert said, f"nothing in the code says {message!r}"


class TestTheOfficialClient:
    @pytest.mark.parametrize("status", sorted({one.status for one in ANSWERS} | {409, 429}))
    def test_raises_and_retries_what_the_page_says(self, status: int) -> None:
        asked: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            asked.append(request)
            return httpx2.Response(status, headers={"retry-after-ms": "1"}, json={"error": {"message": "no"}})

        with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
            client = openai.OpenAI(api_key="k", base_url="http://server/v1", http_client=http)
            with pytest.raises(openai.APIStatusError) as raised:
                client.models.list()
        assert type(raised.value).__name__ == exception_of(status)
        assert len(asked) == (3 if is_retried(status) else 1)


Provoke = Callable[["Server"], Any]


class Server:
    """The API with a base model, a data set, and ways to make it fail."""

    def __init__(self, app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app, self.client, self.monkeypatch = app, client, monkeypatch
        self.sessions, self.storage = app.state.engines.sessions, app.state.engines.storage

    def upload(self, content: bytes = chat_lines(), filename: str = "train.jsonl") -> Any:
        return self.client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (filename, content)})

    def create(self, **body: Any) -> Any:
        asked = {"model": "tiny", "training_file": self.upload().json()["id"]} | body
        return self.client.post("/v1/fine_tuning/jobs", json=asked)

    def raising(self, error: Exception) -> Any:
        def fail() -> None:
            raise error

        path = f"/boom/{type(error).__name__}"
        self.app.add_api_route(path, fail)
        return self.client.get(path)


def resume_what_runs(server: Server) -> Any:
    job_id = server.create().json()["id"]
    return server.client.post(f"/v1/fine_tuning/jobs/{job_id}/resume")


def plan_too_slowly(server: Server) -> Any:
    server.monkeypatch.setattr(counting, "DEADLINE_SECONDS", 0.0)
    server.monkeypatch.setattr(counting, "COUNTED_HERE_BYTES", 0)
    file_id = server.upload().json()["id"]
    return server.client.post("/v1/fine_tuning/jobs/plan", json={"model": "tiny", "training_file": file_id})


def upload_too_much(server: Server) -> Any:
    engines = server.app.state.engines
    small = engines.settings.model_copy(update={"max_file_bytes": 10})
    server.monkeypatch.setitem(server.app.state._state, "engines", replace(engines, settings=small))
    return server.upload()


def ask_for_an_adapter(server: Server) -> Any:
    return server.client.get(f"/v1/fine_tuning/jobs/{server.create().json()['id']}/adapter")


def ask_for_a_deleted_adapter(server: Server) -> Any:
    with transaction(server.sessions) as session:
        job = make_succeeded_job(session, server.storage, make_project(session))
        job_id, archive_id = job.id, job.adapter_archive_file_id
    server.client.delete(f"/v1/files/{archive_id}")
    return server.client.get(f"/v1/fine_tuning/jobs/{job_id}/adapter")


def read_past_the_end(server: Server) -> Any:
    path = f"/v1/files/{server.upload().json()['id']}/content"
    return server.client.get(path, headers={"Range": "bytes=999999-"})


def post_json(text: str) -> Provoke:
    return lambda server: server.client.post("/v1/fine_tuning/jobs", content=text, headers=JSON)


PROVOCATIONS: dict[str, Provoke] = {
    "adapter_deleted": ask_for_a_deleted_adapter,
    "adapter_not_found": ask_for_an_adapter,
    "conflicting_parameters": lambda s: s.create(hyperparameters={"lora_alpha": 16}, lora={"alpha": 8}),
    "file_too_large_to_plan": plan_too_slowly,
    "invalid_job_state": resume_what_runs,
    "invalid_json": post_json("{"),
    "invalid_multipart": lambda s: s.client.post("/v1/files", content=b"{}", headers=JSON),
    "invalid_training_file": lambda s: s.upload(b'{"a": 1}\noops\n'),
    "invalid_type": lambda s: s.create(seed="7"),
    "invalid_value": lambda s: s.create(suffix="x" * 65),
    "missing_required_parameter": post_json('{"model": "tiny"}'),
    "unknown_parameter": lambda s: s.create(lora={"rnak": 8}),
    "unsupported_value": lambda s: s.create(method={"type": "reinforcement"}),
    "invalid_api_key": lambda s: s.client.get("/v1/models", headers={"Authorization": "Bearer wrong"}),
    "permission_denied": lambda s: s.client.delete("/v1/models/tiny"),
    "model_not_found": lambda s: s.create(model="gpt-4o"),
    "not_found": lambda s: s.client.get("/v1/files/file-nothere"),
    "unknown_url": lambda s: s.client.get("/files"),
    "method_not_allowed": lambda s: s.client.put("/v1/files"),
    "file_too_large": upload_too_much,
    "request_too_large": post_json('{"model": "' + "x" * (1 << 20) + '"}'),
    "range_not_satisfiable": read_past_the_end,
    "server_error": lambda s: s.raising(ZeroDivisionError("secret")),
    "service_unavailable": lambda s: s.raising(OperationalError("SELECT 1", {}, Exception("gone"))),
    "storage_full": lambda s: s.raising(OSError(28, "No space left on device")),
}  # fmt: skip
NOT_OF_THE_API = {"model_refused"}


@pytest.mark.usefixtures("base_model")
class TestTheMessages:
    def test_are_provoked_one_and_all(self) -> None:
        assert CODES.keys() == PROVOCATIONS.keys() | NOT_OF_THE_API, "provoke the new code here, in one line"

    def test_are_what_is_answered(
        self, app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
    ) -> None:
        for code, provoke in PROVOCATIONS.items():
            with subtests.test(code), monkeypatch.context() as patched:
                answer = provoke(Server(app, client, patched))
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (CODES[code].status, code), error
                assert re.match(as_pattern(CODES[code].message), error["message"])

    def test_of_a_refused_model_is_the_command_lines(self, tmp_path: Path) -> None:
        with pytest.raises(errors.BadRequest) as refused:
            catalog.describe(tmp_path)
        assert refused.value.code == "model_refused"
        assert re.match(as_pattern(CODES["model_refused"].message), refused.value.message)
