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
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import errors
from app.domain.jobs.states import JobState, Reason
from app.system import model_files
from tests.tools.api_reference.provocations import PROVOCATIONS, Server
from tools.api_reference.errors_page import INTRO, Response, exception_of, responses

ROOT = Path(__file__).parents[3]
SOURCES = [path for room in ("app", "worker") for path in (ROOT / room).rglob("*.py") if "reference" not in path.parts]
RESPONSES = list(responses())
CODES = {each.error.code: each for each in RESPONSES}
ANYTHING = "…"


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
                pairs = zip(target.elts, node.value.elts, strict=False)  # a starred value stands for several
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


class TestTheClasses:
    def test_have_every_code_that_is_raised(self) -> None:
        assert {code: where for code, where in codes_in_the_source().items() if code not in CODES} == {}

    def test_have_no_code_that_is_never_raised(self) -> None:
        defaults = {each.code for each in error_classes()}
        assert CODES.keys() - codes_in_the_source().keys() - defaults == set()

    def test_have_each_code_once(self) -> None:
        assert len(CODES) == len(RESPONSES)


FAILURES = [reason for reason in Reason if reason.final_state is JobState.FAILED]


@pytest.mark.parametrize("reason", FAILURES)
def test_a_reason_that_fails_a_job_has_a_remedy_and_a_message_of_the_code(reason: Reason) -> None:
    message = reason.message or ""
    maybe = [one.rstrip(".") for one in sentences() if all(part in message for part in one.rstrip(".").split(ANYTHING))]
    assert reason.remedy
    assert any(re.search(as_pattern(one), message) for one in maybe), f"nothing in the code says {message!r}"


class TestTheOfficialClient:
    @pytest.mark.parametrize("one", {each[:3]: each for each in RESPONSES}.values(), ids=lambda each: each.error.code)
    def test_raises_and_retries_what_the_page_says(self, one: Response) -> None:
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
                assert re.match(as_pattern(CODES[code].error.message), error["message"]), error["message"]
                assert (answer.headers.get("x-should-retry") == "false") is CODES[code].is_final

    def test_of_a_refused_model_is_the_command_lines(self, tmp_path: Path) -> None:
        with pytest.raises(errors.BadRequest) as refused:
            model_files.read_catalog_entry(tmp_path)
        assert refused.value.code == "model_refused"
        assert re.match(as_pattern(CODES["model_refused"].error.message), refused.value.message)


def test_the_page_names_every_type_that_an_error_can_have() -> None:
    sentence = INTRO.partition("`type` is ")[2].partition("Every response")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == {one.type for one in error_classes()}
