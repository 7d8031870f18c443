"""`Idempotency-Key`: done once, answered the same again, whoever else asks at the same moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from httpx2 import Response
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.api import idempotency as once
from app.api.idempotency import IdempotentRoute, get_idempotent_request
from app.db.access import idempotency
from app.db.access.idempotency import KeyedRequest
from app.db.engine import Sessions, transaction
from app.db.fast_reads import job_reads
from app.db.tables import File, IdempotencyKey, Job, Project
from app.main import ROUTERS
from app.storage import LocalStorage
from tests.deadline import until
from tests.factories import chat_lines

# POST routes that create nothing, with the reason; every other one takes the key.
WITHOUT_A_KEY = {
    "/v1/chat/completions": "creates nothing: an answer is stored nowhere",
    "/v1/completions": "creates nothing: an answer is stored nowhere",
    "/v1/fine_tuning/jobs/plan": "creates nothing: the same question has the same answer anyway",
    "/v1/files/{file_id}/validate": "creates nothing: it reads a file and answers a report",
    "/v1/uploads/{upload_id}/complete": "repeats by itself: the same again answers the same file",
    "/v1/webhook_endpoints/{endpoint_id}/test": "a test that is sent again is another test",
}
Create = Callable[..., Response]


@pytest.fixture
def create(client: TestClient, base_model: str, training_file: str) -> Create:
    def send(key: str | None = "k1", path: str = "/v1/fine_tuning/jobs", **changes: Any) -> Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return client.post(path, json={"model": base_model, "training_file": training_file} | changes, headers=headers)

    return send


def count(sessions: Sessions, table: Any = Job) -> int:
    with transaction(sessions) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def routes(kind: type[APIRoute] = APIRoute) -> Iterator[APIRoute]:
    for router in ROUTERS:
        yield from (route for route in router.routes if isinstance(route, kind))


def calls(route: APIRoute) -> set[Any]:
    """Every dependency of a route, however deep."""
    found, left = set(), [route.dependant]
    while left:
        dependant = left.pop()
        found.add(dependant.call)
        left += dependant.dependencies
    return found


class TestEveryPost:
    def test_takes_the_key_or_is_named_as_one_that_creates_nothing(self) -> None:
        posts = [route for route in routes() if "POST" in (route.methods or ()) and route.path.startswith("/v1")]
        assert posts
        lacking = [
            route.path
            for route in posts
            if get_idempotent_request not in calls(route) or not isinstance(route, IdempotentRoute)
        ]
        assert sorted(lacking) == sorted(WITHOUT_A_KEY)


class TestTheSameAgain:
    def test_a_repeated_request_is_executed_once_and_gets_the_same_response(
        self, create: Create, sessions: Sessions
    ) -> None:
        first, second = create(), create()
        assert (first.status_code, second.status_code) == (200, 200)
        assert second.content == first.content
        assert "idempotency-replayed" not in first.headers
        assert second.headers["idempotency-replayed"] == "true"
        assert count(sessions) == 1

    def test_a_replay_does_not_follow_later_changes_of_the_job(self, create: Create, client: TestClient) -> None:
        first = create()
        client.post(f"/v1/fine_tuning/jobs/{first.json()['id']}/cancel")
        assert create().content == first.content

    def test_a_replay_compares_fields_and_not_bytes(
        self, client: TestClient, base_model: str, training_file: str, sessions: Sessions
    ) -> None:
        fields = {"model": base_model, "training_file": training_file, "seed": 1}
        texts = (json.dumps(fields), json.dumps(dict(reversed(fields.items())), indent=3))
        answers = [
            client.post("/v1/fine_tuning/jobs", content=text, headers={"Idempotency-Key": "k"}) for text in texts
        ]
        assert answers[0].content == answers[1].content
        assert count(sessions) == 1

    def test_a_request_without_a_key_is_executed_again(self, create: Create, sessions: Sessions) -> None:
        assert create(key=None).json()["id"] != create(key=None).json()["id"]
        assert count(sessions) == 2
        assert count(sessions, IdempotencyKey) == 0

    def test_a_key_is_new_after_24_hours(self, create: Create, sessions: Sessions) -> None:
        first = create()
        age(sessions, timedelta(hours=23, minutes=59))
        assert create().json()["id"] == first.json()["id"]
        age(sessions, timedelta(hours=24, seconds=1))
        assert create().json()["id"] != first.json()["id"]
        assert create().headers["idempotency-replayed"] == "true"


def age(sessions: Sessions, by: timedelta) -> None:
    with transaction(sessions) as session:
        session.execute(update(IdempotencyKey).values(created_at=func.clock_timestamp() - by))


class TestAnotherRequest:
    @pytest.mark.parametrize("key", ["k1", "x" * 255, "ä ö"])
    def test_a_key_with_another_body_is_a_400(self, create: Create, sessions: Sessions, key: str) -> None:
        encoded = key.encode("latin-1")
        create(key=encoded)
        error = create(key=encoded, seed=3).json()["error"]
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
        assert "another body" in error["message"]
        assert count(sessions) == 1

    def test_a_key_on_another_path_is_a_400(self, create: Create, client: TestClient) -> None:
        job_id = create().json()["id"]
        answer = client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel", headers={"Idempotency-Key": "k1"})
        assert answer.status_code == 400
        assert "POST /v1/fine_tuning/jobs;" in answer.json()["error"]["message"]

    def test_a_key_of_another_project_is_independent(
        self, create: Create, client: TestClient, foreign_headers: dict[str, str]
    ) -> None:
        create()
        files = {"file": ("a.jsonl", chat_lines())}
        headers = foreign_headers | {"Idempotency-Key": "k1"}
        answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files, headers=headers)
        assert answer.status_code == 200
        assert "idempotency-replayed" not in answer.headers

    @pytest.mark.parametrize("key", ["", "x" * 256])
    def test_a_key_of_invalid_length_is_a_400(self, create: Create, key: str, sessions: Sessions) -> None:
        answer = create(key=key)
        assert answer.status_code == 400
        assert "Idempotency-Key" in answer.json()["error"]["message"]
        assert count(sessions) == 0

    def test_a_wrong_api_key_gets_no_replay(self, create: Create, client: TestClient) -> None:
        create()
        client.headers["Authorization"] = "Bearer wrong"
        answer = create()
        assert answer.status_code == 401
        assert "idempotency-replayed" not in answer.headers


class TestWhatWasRefused:
    def test_a_refused_request_frees_its_key(self, create: Create, sessions: Sessions) -> None:
        assert create(training_file="file-none").status_code == 404
        assert create(seed=-1).status_code == 400
        assert count(sessions, IdempotencyKey) == 0
        assert create().status_code == 200

    @pytest.mark.parametrize(("module", "function"), [(job_reads, "of_new"), (idempotency, "store_response")])
    def test_a_failed_request_leaves_no_job_and_frees_its_key(
        self, create: Create, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str
    ) -> None:
        """Job and key are one transaction: there is no crash that leaves one without the other."""
        with monkeypatch.context() as broken:
            broken.setattr(module, function, lambda *_: 1 / 0)
            assert create().status_code == 500
        assert (count(sessions), count(sessions, IdempotencyKey)) == (0, 0)
        assert create().status_code == 200
        assert count(sessions) == 1


class TestUploads:
    def test_the_same_file_in_another_form_is_the_same(
        self, client: TestClient, sessions: Sessions, storage: LocalStorage
    ) -> None:
        answers = [send_form(client, boundary, chat_lines()) for boundary in ("one", "two")]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert answers[1].headers["idempotency-replayed"] == "true"
        assert count(sessions, File) == 1
        assert len(list(storage.root.glob("objects/**/file-*"))) == 1
        assert list(storage.staging.iterdir()) == []

    def test_other_bytes_or_fields_are_another_request(self, client: TestClient, sessions: Sessions) -> None:
        send_form(client, "one", chat_lines())
        for answer in (send_form(client, "one", chat_lines(13)), send_form(client, "one", chat_lines(), "batch")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_reused")
        assert count(sessions, File) == 1


def send_form(client: TestClient, boundary: str, content: bytes, purpose: str = "fine-tune") -> Response:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'.encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'.encode(),
        content + f"\r\n--{boundary}--\r\n".encode(),
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Idempotency-Key": "form"}
    return client.post("/v1/files", content=b"".join(parts), headers=headers)


class TestAtOnce:
    def test_concurrent_duplicates_create_one_job_and_return_it(self, create: Create, sessions: Sessions) -> None:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: create(key=f"k{n // 4}"), range(32)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 8
        assert count(sessions) == 8

    def test_duplicates_in_one_process_wait_for_the_lock_without_polling(
        self, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks, asked, all_are_here = [], [], threading.Event()
        take, fingerprint_of = idempotency.reserve_key, once.fingerprint_of

        def take_slowly(*given: Any) -> Any:
            looks.append(1)
            all_are_here.wait(10)
            return take(*given)

        monkeypatch.setattr(idempotency, "reserve_key", take_slowly)
        monkeypatch.setattr(once, "fingerprint_of", lambda value: (asked.append(1), fingerprint_of(value))[1])
        with ThreadPoolExecutor(8) as pool:
            duplicates = [pool.submit(create) for _ in range(8)]
            until(lambda: len(asked) == 8, "all of them are here")
            all_are_here.set()
            answers = [duplicate.result(10) for duplicate in duplicates]
        assert len({answer.content for answer in answers}) == 1
        assert [answer.headers.get("idempotency-replayed") for answer in answers].count("true") == 7
        assert len(looks) == 1

    def test_a_duplicate_of_a_refused_request_is_executed(self, create: Create, sessions: Sessions) -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: create(training_file="file-none"), range(8)))
        assert {answer.status_code for answer in answers} == {404}
        assert create().status_code == 200
        assert count(sessions) == 1

    def test_a_duplicate_with_another_body_is_refused(self, create: Create, sessions: Sessions) -> None:
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda seed: create(seed=seed), (1, 2)))
        assert sorted(answer.status_code for answer in answers) == [200, 400]
        assert count(sessions) == 1

    def test_a_duplicate_waits_without_a_connection_and_returns_the_first_response(
        self, create: Create, sessions: Sessions, project: Project, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = []
        take = idempotency.reserve_key
        monkeypatch.setattr("app.db.access.idempotency.reserve_key", lambda *given: (looks.append(1), take(*given))[1])
        with sessions() as first:
            assert take(first, KeyedRequest(project.id, "k1", "POST", "/v1/elsewhere", "other")) is None
            with ThreadPoolExecutor(1) as pool:
                duplicate = pool.submit(create)
                until(lambda: len(looks) > 3, "the duplicate looks again and again")
                until(
                    lambda: app.state.app_state.database.pool.checkedout() == 0, "no connection in between", 10, 0.001
                )
                first.rollback()
                assert duplicate.result(10).status_code == 200
        assert count(sessions) == 1

    def test_a_duplicate_that_waits_too_long_is_a_409_that_clients_retry(
        self, create: Create, sessions: Sessions, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.api.idempotency.DUPLICATE_TIMEOUT_SECONDS", 0.05)
        with sessions() as first:
            idempotency.reserve_key(first, KeyedRequest(project.id, "k1", "POST", "/v1/elsewhere", "other"))
            answer = create()
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert answer.headers["retry-after"] == "1"

    def test_sixty_duplicates_do_not_block_other_requests(self, create: Create, sessions: Sessions) -> None:
        """More of them than the API has threads or connections: the first one still finds one of each."""
        barrier = threading.Barrier(60)

        def ask(_: int) -> bytes:
            barrier.wait()
            return create().content

        with ThreadPoolExecutor(60) as pool:
            answers = set(pool.map(ask, range(60)))
        assert len(answers) == 1
        assert count(sessions) == 1


class TestSecrets:
    @pytest.mark.parametrize("secret", ["tnry_0123_secret", "whsec_" + 42 * "a" + "+/="])
    def test_a_secret_is_in_no_answer_that_is_kept(self, sessions: Sessions, project: Project, secret: str) -> None:
        from app.services.access.idempotency import REDACTED_SECRET, IdempotentRequest, Replay

        with transaction(sessions) as session:
            request = IdempotentRequest(project.id, "k", "POST", "/v1/keys")
            request.reserve(session, "f")
            request.store_response(session, 200, json.dumps({"hint": "whsec_...a+/=", "value": secret}))
        with transaction(sessions) as session, pytest.raises(Replay) as replay:
            IdempotentRequest(project.id, "k", "POST", "/v1/keys").reserve(session, "f")
        assert json.loads(replay.value.body) == {"hint": "whsec_...a+/=", "value": json.loads(REDACTED_SECRET)}


class TestForgetting:
    def test_keys_go_after_24_hours(self, create: Create, sessions: Sessions) -> None:
        create(key="old")
        age(sessions, timedelta(hours=25))
        create(key="young")
        with transaction(sessions) as session:
            assert idempotency.delete_expired(session) == 1
            assert list(session.scalars(select(IdempotencyKey.key))) == ["young"]
