from __future__ import annotations

import pytest
from fastapi import FastAPI
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.api.dependencies import SessionDep
from app.errors import TuneryError, Unavailable
from tests.sentences import Reviewed


def error_of(answer: object) -> dict[str, object]:
    body = answer.json()  # type: ignore[attr-defined]
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code", "doc_url"}
    return dict(body["error"])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("//v1/files", "/v1/files"),
        ("/v1fine_tuning/jobs", "/v1/fine_tuning/jobs"),
        ("/v1/files/", "/v1/files"),
        ("/v1/fine_tunes/ft-x/events", "/v1/fine_tuning/jobs/ft-x/events"),
        ("/v1/finetune", "/v1/fine_tuning/jobs"),
    ],
)
def test_a_url_with_a_usual_mistake_gets_the_right_one(client: TestClient, asked: str, meant: str) -> None:
    answer = client.get(f"http://testserver{asked}")
    assert answer.status_code == 404
    assert f" {meant}?" in str(error_of(answer)["message"])


@pytest.mark.parametrize("prefix", ["/v1", "", "/openai"])
@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/evals/eval_1/runs", "/v1/fine_tuning/jobs/{job_id}/evaluations"),
        ("/fine_tuning/alpha/graders/run", "/v1/fine_tuning/jobs/{job_id}/evaluations"),
        ("/batches", "/v1/chat/completions"),
        ("/responses/resp_1", "/v1/chat/completions"),
        ("/threads/t/runs", "/v1/chat/completions"),
        ("/embeddings", "vLLM"),
    ],
)
def test_a_url_that_is_not_offered_gets_what_takes_its_place(
    client: TestClient, prefix: str, path: str, instead: str
) -> None:
    error = error_of(client.post(prefix + path, json={}))
    assert error["code"] == "unknown_url"
    assert instead in str(error["message"])


def test_another_unknown_url_gets_no_suggestion(client: TestClient, reviewed: Reviewed) -> None:
    reviewed(str(error_of(client.get("/v1/nowhere"))["message"]))
    for path in ("/v1", "/v1/nowhere", "/nowhere/", "/v1/fine_tuning/alpha", "/v1/fine_tuning"):
        assert "Did you mean" not in str(error_of(client.get(path))["message"])


def test_an_unexpected_error_discloses_no_internals(app: FastAPI, client: TestClient) -> None:
    def fail() -> None:
        raise ZeroDivisionError("secret detail")

    app.add_api_route("/boom", fail)
    answer = client.get("/boom")
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (OperationalError("SELECT 1", {}, Exception("gone")), 503),
        (PoolTimeout("no connection"), 503),
        (Unavailable("later"), 503),
        (OSError(28, "No space left on device"), 507),
        (OSError(122, "Disk quota exceeded"), 507),
        (OSError(5, "Input/output error"), 503),
        (IntegrityError("INSERT", {}, Exception("twice")), 500),
        (TuneryError("bad luck"), 500),
    ],
)
def test_an_error_of_the_machine_has_its_status(
    app: FastAPI, client: TestClient, raised: Exception, status: int
) -> None:
    def fail() -> None:
        raise raised

    app.add_api_route("/boom", fail)
    answer = client.get("/boom")
    assert answer.status_code == status
    assert "SELECT" not in str(error_of(answer)["message"])
    assert ("retry-after" in answer.headers) == (status == 503)
    assert answer.headers.get("x-should-retry") == ("false" if status == 507 else None)


def test_a_failed_commit_is_a_503(app: FastAPI, client: TestClient) -> None:
    def lose(_session: Session) -> None:
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    def change(session: SessionDep) -> str:
        session.execute(text("SELECT 1"))
        event.listen(session, "before_commit", lose)
        return "changed"

    app.add_api_route("/change", change)
    assert client.get("/change").status_code == 503


def test_a_message_is_bounded(client: TestClient) -> None:
    hyperparameters = {f"parameter_{n}": 1 for n in range(10_000)}
    answer = client.post("/v1/fine_tuning/jobs", json=hyperparameters)
    assert len(str(error_of(answer)["message"])) < 5_000


def test_a_request_id_of_the_client_is_kept_if_it_is_safe(client: TestClient) -> None:
    mine = client.get("/v1/files", headers={"X-Request-Id": "gateway-42:7"})
    assert mine.headers["x-request-id"] == "gateway-42:7"
    for unfit in ("a b", "x" * 129, "line\tbreak"):
        assert client.get("/v1/files", headers={"X-Request-Id": unfit}).headers["x-request-id"] != unfit


def test_every_response_has_its_time_and_nosniff(client: TestClient) -> None:
    answer = client.get("/healthz")
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.headers["x-content-type-options"] == "nosniff"
