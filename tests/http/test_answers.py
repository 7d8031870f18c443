"""Requests that are passed on to an engine: names, fields, streams, errors, tenancy, disconnects."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import update
from starlette.testclient import TestClient

from app.api.routes import answers as answers_routes
from app.db.deliveries.credentials import encrypt
from app.db.engine import Sessions, transaction
from app.db.tables import Delivery, DeliveryTarget, Job, Project, TunedModel
from app.domain.answers.engine_answers import MAX_ANSWER_BYTES
from app.errors import BadRequest
from app.main import create_app
from app.services import base_models
from app.services.access import permissions
from app.services.answers import answers, engine_client
from app.settings import Settings
from app.storage import LocalStorage
from tests.answering_engine import BASE, TO_ENGINES, WORDS, AnsweringEngine, answering, deliver
from tests.deadline import until
from tests.dripping import dripping
from tests.factories import make_key, make_project, make_succeeded_job
from tests.serving import LiveServer, free_port

CHAT = "/v1/chat/completions"
KEY = Fernet.generate_key().decode()
MESSAGES = [{"role": "user", "content": "Where is my parcel?"}]
EVERYTHING = {
    "messages": MESSAGES, "n": 2, "logprobs": True, "top_logprobs": 3, "temperature": 0.7, "seed": 7,
    "tools": [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}],
    "tool_choice": "auto", "response_format": {"type": "json_object"}, "stop": ["\n"], "logit_bias": {"5": -1},
    "chat_template_kwargs": {"enable_thinking": False}, "future_field": [1, 2.5, None, "ä"],
}  # fmt: skip


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=TO_ENGINES | {"secret_keys": type(settings.secret_keys)(KEY)})


@pytest.fixture
def server() -> Iterator[AnsweringEngine]:
    with answering() as server:
        yield server


@dataclass
class Deliverer:
    sessions: Sessions
    job: Job

    def __call__(self, *urls: str, **how: Any) -> str:
        with transaction(self.sessions) as session:
            return deliver(session, self.job, *urls, encryption_keys=[KEY], **how).model


@pytest.fixture
def delivered(sessions: Sessions, succeeded: Job) -> Deliverer:
    return Deliverer(sessions, succeeded)


def error_of(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "doc_url"}
    return response.status_code, error["code"], error["message"]


class TestPassedOn:
    def test_the_name_is_translated_both_ways(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url, served_model="support-bot")
        answer = client.post(CHAT, json={"model": model, "messages": MESSAGES})
        assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert answer.json()["choices"][0]["message"]["content"] == "".join(WORDS)
        assert answer.headers["x-tunery-answered-by"] == "engine"
        assert server.asked[0].body == {"model": "support-bot", "messages": MESSAGES}

    def test_every_other_field_arrives_unchanged(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url)
        assert len(client.post(CHAT, json={"model": model, **EVERYTHING}).json()["choices"]) == 2
        assert server.asked[0].body == {"model": model, **EVERYTHING}

    @pytest.mark.parametrize(
        ("own", "expected"),
        [
            ({}, {"enable_thinking": False, "reasoning_effort": "low"}),
            ({"enable_thinking": True, "reasoning_effort": None, "other": 1},
             {"enable_thinking": True, "reasoning_effort": "low", "other": 1}),
            (None, {"enable_thinking": False, "reasoning_effort": "low"}),
            ([], []),
        ],
    )  # fmt: skip
    def test_the_chat_template_gets_the_arguments_of_the_training_below_those_of_the_request(
        self, client: TestClient, server: AnsweringEngine, sessions: Sessions, storage: LocalStorage,
        project: Project, base_model: str, own: Any, expected: Any,
    ) -> None:  # fmt: skip
        arguments = {"enable_thinking": False, "reasoning_effort": "low"}
        with transaction(sessions) as session:
            job = make_succeeded_job(session, storage, project, body={"chat_template_kwargs": arguments})
        model = Deliverer(sessions, job)(server.url)
        client.post(CHAT, json={"model": model, "messages": MESSAGES, "chat_template_kwargs": own})
        client.post("/v1/completions", json={"model": model, "prompt": "a"})
        assert [asked.body.get("chat_template_kwargs") for asked in server.asked] == [expected, None]

    def test_a_completion_has_a_path_of_its_own(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        answer = client.post("/v1/completions", json={"model": delivered(server.url), "prompt": [1, 2]})
        assert (answer.json()["object"], server.asked[0].path) == ("text_completion", "/v1/completions")

    def test_a_base_model_has_the_name_that_the_server_or_the_target_gives_it(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, base_model: str
    ) -> None:
        delivered(server.url)
        body = {"model": base_model, "messages": MESSAGES}
        assert client.post(CHAT, json=body).json()["model"] == base_model
        with transaction(delivered.sessions) as session:
            destination = {"kind": "vllm", "urls": [server.url], "shared_path": "/srv", "base_model": "named"}
            session.execute(update(DeliveryTarget).values(destination=destination))
        assert client.post(CHAT, json=body).status_code == 200
        assert [asked.body["model"] for asked in server.asked] == [BASE, "named"]

    def test_an_alias_stands_for_its_base_model(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, base_model: str
    ) -> None:
        delivered(server.url)
        with transaction(delivered.sessions) as session:
            base_models.set_alias(session, "gpt-4o-mini", base_model)
        answer = client.post(CHAT, json={"model": "gpt-4o-mini", "messages": MESSAGES})
        assert (answer.json()["model"], server.asked[0].body["model"]) == ("gpt-4o-mini", BASE)

    def test_the_engine_gets_the_targets_key_and_never_the_clients(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, api_key: str
    ) -> None:
        server.api_key = "engine-secret"
        model = delivered(server.url, api_key="engine-secret")
        answer = client.post(CHAT, json={"model": model, "messages": MESSAGES}, headers={"X-Request-Id": "trace-1"})
        assert answer.status_code == 200
        assert server.asked[0].headers["x-request-id"] == "trace-1"
        assert api_key not in str(server.asked[0].headers)

    def test_an_engine_whose_key_cannot_be_decrypted_gets_no_request(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url, api_key="engine-secret")
        with transaction(delivered.sessions) as session:
            lost = encrypt([Fernet.generate_key().decode()], {"api_key": "engine-secret"})
            session.execute(update(DeliveryTarget).values(credentials=lost))
        status, code, _ = error_of(client.post(CHAT, json={"model": model, "messages": MESSAGES}))
        assert (status, code, server.asked) == (503, "engine_unavailable", [])


class TestAccess:
    def test_another_project_gets_a_404_until_the_model_is_shared(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url)
        with transaction(delivered.sessions) as session:
            other = make_project(session, "other")
            headers = {"Authorization": f"Bearer {make_key(session, other)}"}
        body = {"model": model, "messages": MESSAGES}
        assert error_of(client.post(CHAT, json=body, headers=headers))[:2] == (404, "model_not_found")
        with transaction(delivered.sessions) as session:
            permissions.grant(session, session.get_one(TunedModel, model), [other.id])
        assert client.post(CHAT, json=body, headers=headers).json()["model"] == model

    def test_a_withdrawn_or_deleted_model_gets_no_request(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url)
        with transaction(delivered.sessions) as session:
            session.execute(update(Delivery).values(state="withdrawing", next_attempt_at=Delivery.created_at))
        assert error_of(client.post(CHAT, json={"model": model, "messages": MESSAGES}))[:2] == (503, "model_not_served")
        client.delete(f"/v1/models/{model}")
        assert error_of(client.post(CHAT, json={"model": model}))[:2] == (404, "model_not_found")
        assert server.asked == []

    @pytest.mark.parametrize("body", [{}, {"model": 5}, {"model": ""}])
    def test_a_body_without_a_name_is_refused(self, client: TestClient, body: Any) -> None:
        response = client.post(CHAT, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "model")

    def test_a_private_address_is_not_connected_to(
        self, settings: Settings, storage: LocalStorage, api_key: str, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url)
        strict = settings.model_copy(update={"delivery_allowed_networks": ""})
        headers = {"Authorization": f"Bearer {api_key}"}
        with TestClient(create_app(strict, storage=storage), headers=headers) as client:
            status, code, message = error_of(client.post(CHAT, json={"model": model, "messages": MESSAGES}))
        assert (status, code, server.asked) == (503, "engine_unavailable", [])
        assert "TUNERY_DELIVERY_ALLOWED_NETWORKS" in message


class TestBodies:
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_over_the_operators_limit_is_a_413(
        self, settings: Settings, storage: LocalStorage, api_key: str, chunked: bool
    ) -> None:
        app = create_app(settings.model_copy(update={"max_answer_body_bytes": 1_000}), storage=storage)
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 1_000}]}).encode()
        with TestClient(app, headers={"Authorization": f"Bearer {api_key}"}) as client:
            response = client.post(CHAT, content=iter([body]) if chunked else body)
        assert error_of(response)[:2] == (413, "request_too_large")
        for fact in ("more than 1,000" if chunked else f"{len(body):,}", "1,000", "TUNERY_MAX_ANSWER_BODY_BYTES"):
            assert fact in error_of(response)[2]

    def test_a_large_body_is_checked_in_a_thread(
        self, settings: Settings, storage: LocalStorage, api_key: str, base_model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[str] = []

        def check(*_: Any) -> None:
            threads.append(threading.current_thread().name)
            raise BadRequest("checked")

        monkeypatch.setattr(answers_routes, "check_supported", check)
        app = create_app(settings.model_copy(update={"trial_answers": True}), storage=storage)
        with TestClient(app, headers={"Authorization": f"Bearer {api_key}"}) as client:
            for size in (1, 100_000):
                body = {"model": base_model, "messages": [{"role": "user", "content": "x" * size}]}
                assert client.post(CHAT, json=body).status_code == 400
        in_loop, in_thread = threads
        assert (in_loop.startswith("AnyIO"), in_thread.startswith("AnyIO")) == (False, True)


class TestErrors:
    def test_a_refusal_of_the_engine_is_ours_with_the_requested_name(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url, served_model="bot")
        server.fault = (
            400,
            {},
            json.dumps({"error": {"message": "bot: n is too large", "param": "n", "code": 400}}).encode(),
        )
        response = client.post(CHAT, json={"model": model, "messages": MESSAGES})
        assert error_of(response)[:2] == (400, "invalid_value")
        assert (response.json()["error"]["param"], model in error_of(response)[2]) == ("n", True)

    def test_a_prompt_longer_than_the_context(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        text = "This model's maximum context length is 1024 tokens. However, your request has 2000 input tokens."
        server.fault = (400, {}, json.dumps({"object": "error", "message": text, "code": 400}).encode())
        response = client.post(CHAT, json={"model": delivered(server.url), "messages": MESSAGES})
        assert error_of(response) == (400, "context_length_exceeded", text)

    @pytest.mark.parametrize(("given", "passed_on"), [("7", "7"), ("9" * 400, "3600")])
    def test_a_busy_engine_is_a_429_with_its_delay(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, given: str, passed_on: str
    ) -> None:
        server.fault = (429, {"Retry-After": given}, b"{}")
        response = client.post(CHAT, json={"model": delivered(server.url), "messages": MESSAGES})
        assert error_of(response)[:2] == (429, "rate_limit_exceeded")
        assert response.headers["retry-after"] == passed_on

    def test_an_engine_that_lists_no_base_model(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, base_model: str
    ) -> None:
        server.models = ()
        delivered(server.url)
        response = client.post(CHAT, json={"model": base_model, "messages": MESSAGES})
        assert error_of(response)[:2] == (503, "engine_unavailable")

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ((500, {}, b'{"error": {"message": "CUDA error"}}'), "engine_failed"),
            ((200, {}, b"<html>"), "engine_unavailable"),
            ((200, {}, b"[" * 100_000), "engine_unavailable"),
            ((200, {}, b'"' + b"x" * MAX_ANSWER_BYTES), "engine_unavailable"),
            ((503, {}, b""), "engine_unavailable"),
            ((401, {}, b""), "engine_unavailable"),
            ((404, {}, b""), "engine_unavailable"),
            ((307, {"Location": "http://10.0.0.1/"}, b""), "engine_unavailable"),
        ],
    )
    def test_a_failure_says_what_it_is(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, fault: Any, code: str
    ) -> None:
        server.fault = fault
        response = client.post(CHAT, json={"model": delivered(server.url), "messages": MESSAGES})
        assert error_of(response)[:2] == (502 if code == "engine_failed" else 503, code)

    def test_an_engine_that_is_away(self, client: TestClient, delivered: Deliverer) -> None:
        model = delivered(f"http://127.0.0.1:{free_port()}")
        response = client.post(CHAT, json={"model": model, "messages": MESSAGES})
        assert error_of(response)[:2] == (503, "engine_unavailable")
        assert response.headers["retry-after"] == "5"

    @pytest.mark.parametrize("drips", ["headers", "body"])
    def test_a_response_that_comes_byte_by_byte_is_given_up(
        self, settings: Settings, storage: LocalStorage, api_key: str, delivered: Deliverer, drips: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(engine_client, "CONNECT_SECONDS", 0.2)
        impatient = settings.model_copy(update={"answer_timeout_seconds": 0.2})
        app, headers = create_app(impatient, storage=storage), {"Authorization": f"Bearer {api_key}"}
        with dripping(drips) as url, TestClient(app, headers=headers) as client:
            response = client.post(CHAT, json={"model": delivered(url), "messages": MESSAGES})
        assert error_of(response)[:2] == (503, "engine_unavailable")

    @pytest.mark.parametrize("fault", [None, (500, {}, b"{}"), (404, {}, b"{}")])
    def test_another_server_is_tried_first(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, fault: Any
    ) -> None:
        with answering(AnsweringEngine(fault=fault)) as bad:
            bad_url = bad.url if fault else f"http://127.0.0.1:{free_port()}"
            model = delivered(bad_url, server.url)
            for _ in range(4):  # the order is random
                assert client.post(CHAT, json={"model": model, "messages": MESSAGES}).status_code == 200
        assert len(server.asked) == 4


class TestReplacedName:
    """A delivery unloads a served name and loads the next adapter under it; the engine has a 404 in between."""

    def test_a_request_in_between_gets_its_answer(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        body = {"model": delivered(server.url, served_model="bot"), "messages": MESSAGES}
        server.fault = (404, {}, b'{"error": {"message": "The model `bot` does not exist.", "code": 404}}')
        with ThreadPoolExecutor(1) as pool:
            response = pool.submit(client.post, CHAT, json=body)
            until(lambda: len(server.asked) >= 2, "it is asked again")
            server.fault = None
            assert response.result().status_code == 200

    def test_a_name_that_stays_away_is_given_up(
        self, client: TestClient, server: AnsweringEngine, delivered: Deliverer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answers, "REPLACEMENT_SECONDS", 0.5)
        body = {"model": delivered(server.url, served_model="bot"), "messages": MESSAGES}
        server.fault = (404, {}, b"{}")
        assert error_of(client.post(CHAT, json=body))[:2] == (503, "engine_unavailable")


class TestStreams:
    def test_each_event_arrives_when_it_is_sent(
        self, live_server: LiveServer, api_key: str, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        model = delivered(server.url, served_model="bot")
        server.gate.clear()
        with streaming(live_server, api_key, model) as lines:
            first = json.loads(next(lines).removeprefix("data: "))
            assert (first["model"], server.sent_events) == (model, 1)
            server.gate.set()
            rest = [line for line in lines if line]
        assert [json.loads(line.removeprefix("data: "))["model"] for line in rest[:-1]] == [model] * 4
        assert rest[-1] == "data: [DONE]"

    def test_a_client_that_disconnects_ends_the_generation(
        self, live_server: LiveServer, api_key: str, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        server.is_endless = True
        with streaming(live_server, api_key, delivered(server.url)) as lines:
            next(lines)
        until(server.client_gone.is_set, "the engine notices that its client is gone")

    @pytest.mark.parametrize("path", ["chat", "completions"])
    def test_the_official_client_raises_an_error_after_the_texts_of_an_engine_that_dies(
        self, live_server: LiveServer, api_key: str, server: AnsweringEngine, delivered: Deliverer, path: str
    ) -> None:
        server.dies_after = 2
        model, received = delivered(server.url), []
        with openai.OpenAI(base_url=live_server.url, api_key=api_key, max_retries=0) as client:
            if path == "chat":
                stream: Any = client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
            else:
                stream = client.completions.create(model=model, prompt="hi", stream=True)
            with pytest.raises(openai.APIError, match="in the middle") as raised:
                received.extend(stream)
        assert len(received) == 2
        assert raised.value.code == "engine_failed"

    def test_an_event_that_is_no_json_ends_the_stream_with_an_error(
        self, live_server: LiveServer, api_key: str, server: AnsweringEngine, delivered: Deliverer
    ) -> None:
        server.fault = (200, {"Content-Type": "text/event-stream"}, b": ping\n\ndata: not json\n\ndata: [DONE]\n\n")
        with streaming(live_server, api_key, delivered(server.url)) as lines:
            received = [line for line in lines if line]
        error = json.loads(received[-1].removeprefix("data: "))["error"]
        assert (len(received), error["code"]) == (1, "engine_unavailable")

    def test_no_database_connection_is_held(
        self, live_server: LiveServer, api_key: str, server: AnsweringEngine, delivered: Deliverer, settings: Settings
    ) -> None:
        server.is_endless = True
        model = delivered(server.url)
        with httpx2.Client(
            base_url=live_server.root, headers={"Authorization": f"Bearer {api_key}"}, trust_env=False
        ) as http:
            body = {"model": model, "messages": MESSAGES, "stream": True}
            streams = [http.stream("POST", CHAT, json=body) for _ in range(4 * settings.database_pool_size)]
            opened = [stream.__enter__() for stream in streams]
            assert {response.status_code for response in opened} == {200}
            assert http.get("/v1/models").status_code == 200
            for stream in streams:
                stream.__exit__(None, None, None)


class streaming:  # noqa: N801
    """The lines of a streamed answer; leaving the block closes the connection."""

    def __init__(self, server: LiveServer, key: str, model: str) -> None:
        self._client = httpx2.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30)
        body = {"model": model, "messages": MESSAGES, "stream": True}
        self._stream = self._client.stream("POST", server.root + CHAT, json=body)

    def __enter__(self) -> Iterator[str]:
        response = self._stream.__enter__()
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return iter(response.iter_lines())

    def __exit__(self, *_: Any) -> None:
        self._stream.__exit__(None, None, None)
        self._client.close()
