from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.db import keys
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, Project
from tests.factories import make_key

OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of everything under /v1, with made-up ids."""
    for path, item in app.openapi()["paths"].items():
        for method in item:
            if path.startswith("/v1"):
                yield method.upper(), path.replace("{", "").replace("}", "")


class TestEveryRouteUnderV1:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearer tnry_0123456789ab_wrong",
            "Bearer größe",
            "tnry_0123456789ab_wrong",
        ],
    )
    def test_refuses_a_missing_or_wrong_key_in_openais_shape(
        self, app: FastAPI, client: TestClient, header: str | None
    ) -> None:
        del client.headers["Authorization"]
        for method, path in operations(app):
            headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]

    def test_refuses_a_revoked_key_at_once(self, app: FastAPI, client: TestClient, sessions: Sessions) -> None:
        assert client.get("/v1/files").status_code == 200
        with transaction(sessions) as session:
            (key,) = session.scalars(select(ApiKey))
            keys.revoke(session, key.id)
        for method, path in operations(app):
            assert client.request(method, path).json()["error"]["code"] == "invalid_api_key", (method, path)

    def test_does_not_repeat_the_key_in_its_answer(self, client: TestClient) -> None:
        secret = "tnry_0123456789ab_almost-right"
        assert secret not in client.get("/v1/files", headers={"Authorization": f"Bearer {secret}"}).text

    def test_looks_at_the_key_before_it_reads_a_json_body(self, client: TestClient) -> None:
        answer = client.post("/v1/fine_tuning/jobs", content=b"{not json", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401

    def test_is_there(self, app: FastAPI) -> None:
        assert len(list(operations(app))) >= 16


class TestOpenRoutes:
    def test_need_no_key(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        for path in OPEN:
            assert client.get(path).status_code != 401, path


class TestLastUse:
    @pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs/ftjob-none"])
    def test_is_remembered_at_most_once_a_minute(self, client: TestClient, sessions: Sessions, path: str) -> None:
        client.get(path)
        first = self.last_use(sessions)
        client.get(path)
        assert first is not None
        assert self.last_use(sessions) == first
        with transaction(sessions) as session:
            session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(minutes=2)))
        client.get(path)
        later = self.last_use(sessions)
        assert later is not None
        assert later > first

    @staticmethod
    def last_use(sessions: Sessions) -> datetime | None:
        with transaction(sessions) as session:
            return session.scalar(select(ApiKey.last_used_at))


class TestKeys:
    def test_of_one_project_see_the_same(self, client: TestClient, sessions: Sessions, project: Project) -> None:
        with transaction(sessions) as session:
            second = make_key(session, project, "second")
        client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x"})
        listed = client.get("/v1/files", headers={"Authorization": f"bearer  {second}"}).json()["data"]
        assert len(listed) == 1
