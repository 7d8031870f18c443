"""Reference endpoints and models that score, against a server of the tests that misbehaves on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from pydantic import SecretStr

from app.domain.evaluations.graders import EvaluationSettings, Reference, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.settings import Endpoint
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

Answer = tuple[int, dict[str, str], Any]  # status, headers, body
ROWS = [EvaluationRow(n, {"answer": str(n)}, prompt=f"say {n}") for n in range(8)]


class ChatServer:
    """Answers each request by `respond(number, body)`; `requests` has the bodies and keys."""

    def __init__(self, respond: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.requests: list[tuple[dict[str, Any], str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append((body, self.headers.get("Authorization", "")))
                status, headers, answer = respond(len(owner.requests), body)
                if status:
                    self.send_response_only(status)
                if callable(answer):
                    if status:
                        self.end_headers()
                    with suppress(OSError):
                        answer(self.wfile.write)
                    return
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError):  # the client has given up
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=partial(self._server.serve_forever, 0.02), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(text: Any) -> Answer:
    return (
        200,
        {},
        {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"completion_tokens": 2}},
    )


def settings_of(model: str, max_new_tokens: int) -> EvaluationSettings:
    return EvaluationSettings(reference=Reference(model=model), max_new_tokens=max_new_tokens)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[ChatServer, ChatEndpoint]]]:
    opened: list[Any] = []

    def serve(
        respond: Callable[[int, dict[str, Any]], Answer], wait: Callable[[float], None] | None = None, **options: Any
    ) -> tuple[ChatServer, ChatEndpoint]:
        server = ChatServer(respond)
        options = {"concurrency": 1, "api_key": SecretStr("secret")} | options
        pauses: list[float] = []
        endpoint = ChatEndpoint("old", Endpoint(base_url=server.url, **options), wait or pauses.append)
        endpoint.pauses = pauses  # type: ignore[attr-defined]
        opened.extend((endpoint, server))
        return server, endpoint

    yield serve
    for each in opened:
        each.close()


class TestReference:
    def test_answers_every_row_with_the_key_of_the_operator(self, serve: Any) -> None:
        server, endpoint = serve(lambda _, body: said(f" {body['messages'][0]['content']}! "), concurrency=4)
        answers = ask_reference(endpoint, settings_of("ft:old", 17), ROWS)
        assert [each.text for each in answers] == [f"say {n}!" for n in range(8)]
        body, key = server.requests[0]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("ft:old", 17, 0)
        assert key == "Bearer secret"

    def test_a_rate_limit_is_respected(self, serve: Any) -> None:
        def respond(number: int, _: dict[str, Any]) -> Answer:
            return (429, {"Retry-After": "7"}, {"error": {"message": "slow down"}}) if number < 3 else said("ok")

        server, endpoint = serve(respond)
        assert endpoint.answer("m", [])[0] == "ok"
        assert (len(server.requests), endpoint.pauses) == (3, [7.0, 7.0])

    @pytest.mark.parametrize("year", [2020, 2040], ids=["a clock that is years ahead", "years behind"])
    def test_a_rate_limit_until_a_date_counts_from_the_date_of_the_answer(self, serve: Any, year: int) -> None:
        headers = {"Date": f"Tue, 25 Nov {year} 12:00:00 GMT", "Retry-After": f"Tue, 25 Nov {year} 12:00:07 GMT"}
        limited = (429, headers, {"error": {"message": "slow down"}})
        _, endpoint = serve(lambda number, _: limited if number < 2 else said("ok"))
        assert endpoint.answer("m", [])[0] == "ok"
        assert endpoint.pauses == [7.0]

    def test_a_limit_without_an_end_fails_the_row_with_the_reason(self, serve: Any, reviewed: Reviewed) -> None:
        server, endpoint = serve(lambda *_: (429, {}, {"error": {"message": "slow down"}}))
        (answer,) = ask_reference(endpoint, settings_of("m", 5), ROWS[:1])
        assert answer.text is None
        reviewed(str(answer.error))
        assert len(server.requests) == ATTEMPTS

    def test_a_restart_of_the_endpoint_costs_no_answer(self, serve: Any) -> None:
        _, endpoint = serve(lambda number, _: (503, {}, {}) if number < ATTEMPTS else said("ok"))
        assert endpoint.answer("m", [])[0] == "ok"
        assert 60 < sum(endpoint.pauses) < 90

    def test_calls_without_a_text_are_no_empty_answer(self, serve: Any, reviewed: Reviewed) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        server, endpoint = serve(lambda *_: (200, {}, {"choices": [{"message": message}]}))
        answers = ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert len(server.requests) == len(ROWS) > MAX_FAILURES  # it has not failed
        assert {each.text for each in answers} == {None}
        reviewed(str(answers[0].error))

    @pytest.mark.parametrize("answer", [{"result": "x"}, b"<html>login</html>"], ids=["JSON", "a page"])
    def test_an_answer_of_another_shape_is_quoted(self, serve: Any, answer: Any, reviewed: Reviewed) -> None:
        _, endpoint = serve(lambda *_: (200, {}, answer))
        with pytest.raises(EndpointError) as raised:
            endpoint.answer("m", [])
        reviewed(str(raised.value))

    @pytest.mark.parametrize("status", [200, 0], ids=["its answer", "its headers"])
    def test_an_endpoint_that_never_ends_its_answer_times_out(self, serve: Any, status: int) -> None:
        is_over = Event()

        def drip(write: Callable[[bytes], Any]) -> None:
            write(b"" if status else b"HTTP/1.1 200 OK\r\nX-Name: ")
            while not is_over.wait(0.01):
                write(b" ")

        _, endpoint = serve(lambda *_: (status, {}, drip), timeout_seconds=0.2)
        with pytest.raises(EndpointError, match="in time"):
            endpoint.answer("m", [])
        is_over.set()

    def test_a_refusal_is_not_repeated_and_ends_the_questions(self, serve: Any, reviewed: Reviewed) -> None:
        server, endpoint = serve(lambda *_: (401, {}, {"error": {"message": "no such key"}}))
        answers = ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert len(server.requests) == MAX_FAILURES
        reviewed(str(answers[0].error))
        reviewed(str(answers[-1].error))

    def test_a_cancel_ends_the_questions_of_an_endpoint_that_works(self, serve: Any) -> None:
        cancelled = Event()

        def respond(number: int, _: dict[str, Any]) -> Answer:
            if number == 2:
                cancelled.set()
            return said("ok")

        def wait(_: float) -> None:
            if cancelled.is_set():
                raise InterruptedError

        server, endpoint = serve(respond, wait)
        with pytest.raises(InterruptedError):
            ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert len(server.requests) == 2

    def test_a_recorded_call_without_a_text_is_no_empty_answer(self, reviewed: Reviewed) -> None:
        call = EvaluationRow(1, {"old": "", "recorded_tool_calls": [{"id": "c"}]}, prompt="a")
        empty = EvaluationRow(2, {"old": " "}, prompt="b")
        of_call, of_empty = recorded_answers([call, empty], "old")
        assert of_call.text is None
        reviewed(str(of_call.error))
        assert of_empty.text == ""

    def test_rows_that_worked_are_kept(self, serve: Any) -> None:
        _, endpoint = serve(
            lambda number, _: said("ok") if number != 3 else (400, {}, {"error": {"message": "too long"}})
        )
        answers = ask_reference(endpoint, settings_of("m", 5), ROWS)
        assert [each.text for each in answers].count("ok") == 7
        assert "too long" in str(answers[2].error)


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

    def test_a_row_without_an_answer_is_not_sent(self, serve: Any) -> None:
        server, endpoint = serve(lambda *_: said("1"))
        (scored,) = ask_scores(endpoint, self.GRADER, [(ROWS[0], None)])
        assert (scored.value, server.requests) == (None, [])

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
