"""Reference endpoints and models that score, against a server of the tests that misbehaves on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event
from typing import Any

import pytest
from pydantic import SecretStr

from app.domain.evaluations.graders import EvaluationSettings, Reference, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.settings import Endpoint
from tests.loopback import Answer, Received, serving_loopback
from tests.sentences import Reviewed
from worker.evaluations.endpoints import (
    ATTEMPTS,
    MAX_FAILURES,
    ChatEndpoint,
    EndpointError,
    ask_reference,
    ask_scores,
    parse_score,
    recorded_answers,
)

SLOW_DOWN = {"error": {"message": "slow down"}}
ROWS = [EvaluationRow(n, {"answer": str(n)}, prompt=f"say {n}") for n in range(8)]


@dataclass
class ChatServer:
    """Answers each request by `responses(number, body)`; `requests` has the bodies and keys."""

    responses: Callable[[int, dict[str, Any]], Answer]
    requests: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def respond(self, request: Received) -> Answer:
        body = json.loads(request.body)
        self.requests.append((body, request.headers.get("authorization", "")))
        return self.responses(len(self.requests), body)


@contextmanager
def chatting(responses: Callable[[int, dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    server = ChatServer(responses)
    with serving_loopback(server.respond) as server.port:
        yield server


def answer(status: int, value: Any, **headers: str) -> Answer:
    return status, headers, json.dumps(value).encode()


def said(text: Any) -> Answer:
    return answer(
        200, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"completion_tokens": 2}}
    )


def settings_of(model: str, max_new_tokens: int) -> EvaluationSettings:
    return EvaluationSettings(reference=Reference(model=model), max_new_tokens=max_new_tokens)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[ChatServer, ChatEndpoint]]]:
    with ExitStack() as stack:

        def serve(
            responses: Callable[[int, dict[str, Any]], Answer], **options: Any
        ) -> tuple[ChatServer, ChatEndpoint]:
            server, pauses = stack.enter_context(chatting(responses)), list[float]()
            options = {"concurrency": 1, "api_key": SecretStr("secret")} | options
            endpoint = ChatEndpoint("old", Endpoint(base_url=server.url, **options), pauses.append)
            endpoint.pauses = pauses  # type: ignore[attr-defined]
            stack.callback(endpoint.close)
            return server, endpoint

        yield serve


class TestReference:
    def test_answers_every_row_with_the_key_of_the_operator(self, serve: Any) -> None:
        server, endpoint = serve(lambda _, body: said(f" {body['messages'][0]['content']}! "), concurrency=4)
        answers = ask_reference(endpoint, settings_of("ft:old", 17), ROWS)
        assert [each.text for each in answers] == [f"say {n}!" for n in range(8)]
        body, key = server.requests[0]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("ft:old", 17, 0)
        assert key == "Bearer secret"

    @pytest.mark.parametrize(
        "headers",
        [
            {"Retry-After": "7"},
            {"Date": "Wed, 25 Nov 2020 12:00:00 GMT", "Retry-After": "Wed, 25 Nov 2020 12:00:07 GMT"},
            {"Date": "Sun, 25 Nov 2040 12:00:00 GMT", "Retry-After": "Sun, 25 Nov 2040 12:00:07 GMT"},
        ],
        ids=["seconds", "a date, by a clock years behind", "a date, by a clock years ahead"],
    )
    def test_a_rate_limit_is_respected(self, serve: Any, headers: dict[str, str]) -> None:
        server, endpoint = serve(lambda number, _: answer(429, SLOW_DOWN, **headers) if number < 3 else said("ok"))
        assert endpoint.answer("m", [])[0] == "ok"
        assert (len(server.requests), endpoint.pauses) == (3, [7.0, 7.0])

    def test_a_limit_without_an_end_fails_the_row_with_the_reason(self, serve: Any, reviewed: Reviewed) -> None:
        server, endpoint = serve(lambda *_: answer(429, SLOW_DOWN))
        (failed,) = ask_reference(endpoint, settings_of("m", 5), ROWS[:1])
        assert failed.text is None
        reviewed(str(failed.error))
        assert len(server.requests) == ATTEMPTS

    def test_a_restart_of_the_endpoint_costs_no_answer(self, serve: Any) -> None:
        _, endpoint = serve(lambda number, _: answer(503, {}) if number < ATTEMPTS else said("ok"))
        assert endpoint.answer("m", [])[0] == "ok"
        assert 60 < sum(endpoint.pauses) < 90

    def test_calls_without_a_text_are_no_empty_answer(self, serve: Any, reviewed: Reviewed) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        server, endpoint = serve(lambda *_: answer(200, {"choices": [{"message": message}]}))
        answers = ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert len(server.requests) == len(ROWS) > MAX_FAILURES  # it has not failed
        assert {each.text for each in answers} == {None}
        reviewed(str(answers[0].error))

    @pytest.mark.parametrize("body", [b'{"result": "x"}', b"<html>login</html>"], ids=["JSON", "a page"])
    def test_an_answer_of_another_shape_is_quoted(self, serve: Any, body: bytes, reviewed: Reviewed) -> None:
        _, endpoint = serve(lambda *_: (200, {}, body))
        with pytest.raises(EndpointError) as raised:
            endpoint.answer("m", [])
        reviewed(str(raised.value))

    @pytest.mark.parametrize(
        "start", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Name: "], ids=["its answer", "its headers"]
    )
    def test_an_endpoint_that_never_ends_its_answer_times_out(self, serve: Any, start: bytes) -> None:
        is_over = Event()

        def drip(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(start)
            while not is_over.wait(0.01):
                handler.wfile.write(b" ")

        _, endpoint = serve(lambda *_: drip, timeout_seconds=0.2)
        with pytest.raises(EndpointError, match="in time"):
            endpoint.answer("m", [])
        is_over.set()

    def test_a_refusal_is_not_repeated_and_ends_the_questions(self, serve: Any, reviewed: Reviewed) -> None:
        server, endpoint = serve(lambda *_: answer(401, {"error": {"message": "no such key"}}))
        answers = ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert len(server.requests) == MAX_FAILURES
        reviewed(str(answers[0].error))
        reviewed(str(answers[-1].error))

    def test_a_recorded_call_without_a_text_is_no_empty_answer(self, reviewed: Reviewed) -> None:
        call = EvaluationRow(1, {"old": "", "recorded_tool_calls": [{"id": "c"}]}, prompt="a")
        empty = EvaluationRow(2, {"old": " "}, prompt="b")
        of_call, of_empty = recorded_answers([call, empty], "old")
        assert of_call.text is None
        reviewed(str(of_call.error))
        assert of_empty.text == ""


class TestScoreModel:
    GRADER = ScoreModel.model_validate(
        {
            "type": "score_model",
            "name": "judge",
            "model": "judge-1",
            "range": [0, 10],
            "input": [{"role": "user", "content": "{{ item.answer }} or {{ sample.output_text }}?"}],
        }
    )

    def test_asks_with_the_templates_filled_in_and_limits_the_score(self, serve: Any) -> None:
        server, endpoint = serve(lambda *_: said('Here: {"steps": [], "result": 12.5}'))
        (scored,) = ask_scores(endpoint, self.GRADER, [(ROWS[3], "four")])
        assert scored.value == 10
        body, _ = server.requests[0]
        assert body["messages"][0] == {"role": "user", "content": "3 or four?"}
        assert "0 to 10" in body["messages"][1]["content"]

    def test_an_answer_without_a_number_is_no_score(self, serve: Any) -> None:
        _, endpoint = serve(lambda *_: said("I like it"))
        (scored,) = ask_scores(endpoint, self.GRADER, [(ROWS[0], "x")])
        assert (scored.value, "I like it" in str(scored.error)) == (None, True)

    @pytest.mark.parametrize(("messages", "characters"), [(1, 1_000_001), (4, 300_000)])
    def test_messages_that_are_too_large_are_not_sent(self, serve: Any, messages: int, characters: int) -> None:
        server, endpoint = serve(lambda number, body: said('{"result": 1}'))
        message = {"role": "user", "content": "{{ sample.output_text }}"}
        grader = ScoreModel.model_validate(
            {"type": "score_model", "name": "judge", "model": "m", "input": [message] * messages}
        )
        long, short = ask_scores(endpoint, grader, [(ROWS[0], "x" * characters), (ROWS[1], "x")])
        assert (long.value, short.value) == (None, 1)
        assert "1,000,000 bytes" in str(long.error)
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0.5", 0.5),
            (' {"result": 3} ', 3),
            ("{}", None),
            ('{"result": true}', None),
            ('{"result": 1' + 400 * "0" + "}", None),
            ('{"result": 1e999}', None),
            ("NaN", None),
            ("", None),
        ],
        ids=["number", "object", "nothing", "boolean", "huge", "infinite", "NaN", "empty"],
    )
    def test_a_score_is_a_number_in_json_or_alone(self, text: str, value: float | None) -> None:
        assert parse_score(text) == value
