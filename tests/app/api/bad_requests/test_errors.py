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


def error_of(answer: object) -> dict[str, object]:
    body = answer.json()  # type: ignore[attr-defined]
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return dict(body["error"])


class TestEveryError:
    def test_of_an_unknown_url_names_it(self, client: TestClient) -> None:
        for path in ("/nowhere", "/v1/nowhere", "/v1/files/", "/v1/fine_tuning/jobs/x/nowhere"):
            answer = client.get(path)
            assert answer.status_code == 404
            assert path in str(error_of(answer)["message"])

    @pytest.mark.parametrize(
        ("asked", "meant"),
        [
            ("/models", "/v1/models"),
            ("/v1/v1/models", "/v1/models"),
            ("//v1/files", "/v1/files"),
            ("/v1models", "/v1/models"),
            ("/v1fine_tuning/jobs", "/v1/fine_tuning/jobs"),
            ("/v1/files/", "/v1/files"),
            ("/v1/fine_tuning/jobs/", "/v1/fine_tuning/jobs"),
            ("/v1/fine-tuning/jobs", "/v1/fine_tuning/jobs"),
            ("/v1/fine-tunes", "/v1/fine_tuning/jobs"),
            ("/v1/fine_tunes/ft-x/events", "/v1/fine_tuning/jobs/ft-x/events"),
            ("/v1/finetune", "/v1/fine_tuning/jobs"),
            ("/chat/completions", "/v1/chat/completions"),
        ],
    )
    def test_of_a_url_with_a_usual_slip_names_the_one_that_is_meant(
        self, client: TestClient, asked: str, meant: str
    ) -> None:
        answer = client.get(f"http://testserver{asked}")
        assert answer.status_code == 404
        assert f"Did you mean {meant}?" in str(error_of(answer)["message"])

    @pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/openai/deployments/mine/completions"])
    def test_of_a_url_for_inference_says_where_that_is_to_be_had(self, client: TestClient, path: str) -> None:
        answer = client.post(path, json={"model": "ft:tiny:org::1"})
        assert answer.status_code == 404
        assert "vLLM" in str(error_of(answer)["message"])

    @pytest.mark.parametrize("prefix", ["/v1", "", "/openai", "/openai/v1"])
    @pytest.mark.parametrize(
        ("path", "name", "instead"),
        [
            ("/evals", "Evals API", "/v1/fine_tuning/jobs/{job_id}/evaluations"),
            ("/evals/eval_1/runs", "Evals API", "/v1/fine_tuning/jobs/{job_id}/evaluations"),
            ("/fine_tuning/alpha/graders/run", "Graders", "/v1/fine_tuning/jobs/{job_id}/evaluations"),
            ("/batches", "Batches", "/v1/chat/completions"),
            ("/batches/batch_1/cancel", "Batches", "/v1/chat/completions"),
            ("/responses", "Responses API", "/v1/chat/completions"),
            ("/responses/resp_1", "Responses API", "/v1/chat/completions"),
            ("/assistants", "Assistants", "/v1/chat/completions"),
            ("/threads/t/runs", "Assistants", "/v1/chat/completions"),
        ],
    )
    def test_of_what_is_not_offered_names_it_and_what_takes_its_place(
        self, client: TestClient, prefix: str, path: str, name: str, instead: str
    ) -> None:
        error = error_of(client.post(prefix + path, json={}))
        assert error["code"] == "unknown_url"
        assert all(text in str(error["message"]) for text in (name, "not offered", instead))

    def test_of_a_url_with_another_slip_guesses_nothing(self, client: TestClient) -> None:
        for path in ("/v1", "/v1/nowhere", "/nowhere/", "/v1/fine_tuning/alpha", "/v1/fine_tuning"):
            assert "Did you mean" not in str(error_of(client.get(path))["message"])

    def test_of_a_wrong_method_names_the_right_one(self, client: TestClient) -> None:
        for url, allowed in (
            ("/v1/files", "GET, HEAD, POST"),
            ("/v1/files/x", "GET, HEAD, POST, DELETE"),
            ("/v1/queue", "GET, HEAD"),
        ):
            answer = client.put(url)
            assert answer.status_code == 405
            assert answer.headers["allow"] == allowed
            assert allowed in str(error_of(answer)["message"])

    def test_of_a_query_is_a_400_with_its_param_and_every_problem(self, client: TestClient) -> None:
        answer = client.get("/v1/files?limit=no&order=up")
        assert answer.status_code == 400
        error = error_of(answer)
        assert error["param"] == "limit"
        assert "order" in str(error["message"])
        assert '"up"' in str(error["message"])

    def test_of_a_nul_is_raised_before_postgresql_receives_it(self, client: TestClient) -> None:
        assert client.get("/v1/files?after=%00").status_code == 400
        assert client.get("/v1/files/file-%00").status_code == 404
        assert error_of(client.get("/v1/models/a%00"))["code"] == "unknown_url"

    def test_that_is_unexpected_discloses_no_internals(self, app: FastAPI, client: TestClient) -> None:
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
    def test_of_the_machine_has_its_status(
        self, app: FastAPI, client: TestClient, raised: Exception, status: int
    ) -> None:
        def fail() -> None:
            raise raised

        app.add_api_route("/boom", fail)
        answer = client.get("/boom")
        assert answer.status_code == status
        assert "SELECT" not in str(error_of(answer)["message"])
        assert ("retry-after" in answer.headers) == (status == 503)
        assert answer.headers.get("x-should-retry") == ("false" if status == 507 else None)

    def test_of_a_commit_is_returned_instead_of_success(self, app: FastAPI, client: TestClient) -> None:
        def lose(_session: Session) -> None:
            raise OperationalError("COMMIT", {}, Exception("connection lost"))

        def change(session: SessionDep) -> str:
            session.execute(text("SELECT 1"))
            event.listen(session, "before_commit", lose)
            return "changed"

        app.add_api_route("/change", change)
        assert client.get("/change").status_code == 503

    def test_message_is_bounded(self, client: TestClient) -> None:
        hyperparameters = {f"parameter_{n}": 1 for n in range(10_000)}
        answer = client.post("/v1/fine_tuning/jobs", json=hyperparameters)
        assert len(str(error_of(answer)["message"])) < 5_000


class TestEveryAnswer:
    def test_has_a_request_id_of_its_own(self, client: TestClient) -> None:
        first, second = client.get("/v1/files"), client.get("/v1/nowhere")
        assert first.headers["x-request-id"].startswith("req_")
        assert first.headers["x-request-id"] != second.headers["x-request-id"]

    def test_takes_the_clients_request_id_if_it_may_stand_in_a_log(self, client: TestClient) -> None:
        mine = client.get("/v1/files", headers={"X-Request-Id": "gateway-42:7"})
        assert mine.headers["x-request-id"] == "gateway-42:7"
        for unfit in ("a b", "x" * 129, "line\tbreak"):
            assert client.get("/v1/files", headers={"X-Request-Id": unfit}).headers["x-request-id"] != unfit

    def test_says_how_long_it_took_and_is_never_sniffed(self, client: TestClient) -> None:
        answer = client.get("/healthz")
        assert int(answer.headers["openai-processing-ms"]) >= 0
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["x-content-type-options"] == "nosniff"
