from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, Project
from app.domain.access import scopes
from app.domain.error_text.json_text import as_json
from app.services.access import keys, projects
from tests.factories import make_key, make_project

ENDLESS = ("/v1/events/stream",)
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json", "/job.schema.json")


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, template) of everything under /v1, in the document or not."""
    found = [route for route in every_route(app) if route.path.startswith("/v1")]
    for route in found:
        yield from ((method, route.path_format) for method in sorted(route.methods))


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path with made-up ids) of everything under /v1 that the document has."""
    for path, item in app.openapi()["paths"].items():
        if path.startswith("/v1"):
            yield from ((method.upper(), asked(path)) for method in item)


def every_route(app: FastAPI) -> list[APIRoute]:
    """Also those of included routers, which FastAPI keeps in a tree."""
    found: list[APIRoute] = []
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            found.append(route)
        waiting.extend(getattr(getattr(route, "original_router", route), "routes", ()))
    return found


def asked(template: str) -> str:
    """A path with made-up ids."""
    return template.replace("{", "").replace("}", "")


class TestEveryRouteUnderV1:
    def test_every_documented_operation_is_among_the_tested_routes(self, app: FastAPI) -> None:
        documented = {
            (method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item if "/v1" in path
        }
        assert documented <= set(routes(app))
        assert len(documented) >= 29

    @pytest.mark.parametrize(
        ("header", "says"),
        [
            (None, "didn't provide"),
            ("Bearer ", "didn't provide"),
            ("Basic dXNlcjpwYXNz", "didn't provide"),
            ("Bearer tnry_0123456789ab_wrong", "this server has no such key"),
            ("Bearer größe", "this server has no such key"),
        ],
    )
    def test_every_route_refuses_a_missing_or_wrong_key(
        self, app: FastAPI, client: TestClient, header: str | None, says: str
    ) -> None:
        del client.headers["Authorization"]
        for method, template in routes(app):
            headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
            answer = client.request(method, asked(template), headers=headers)
            assert answer.status_code == 401, (method, template, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            if method != "HEAD":
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert says in error["message"]

    @pytest.mark.parametrize("end", ["revoked", "expired", "rotated", "archived"])
    def test_refuses_a_key_that_ended_and_says_how(
        self, app: FastAPI, client: TestClient, sessions: Sessions, project: Project, end: str
    ) -> None:
        assert client.get("/v1/files").status_code == 200
        ENDS[end](sessions, project)
        for method, template in routes(app):
            answer = client.request(method, asked(template))
            assert answer.status_code == 401, (method, template, answer.text)
            if method != "HEAD":
                error = answer.json()["error"]
                assert error["code"] == "invalid_api_key"
                assert end in error["message"]

    def test_belongs_to_an_area_of_scopes(self, app: FastAPI) -> None:
        """A path that is not in app.domain.access.scopes.RESOURCE_BY_PREFIX requires the scope `all`."""
        without_resource = [
            path
            for _, path in routes(app)
            if scopes.resource_of(path) is None
            and path not in scopes.ANY_KEY_PATHS
            and not path.startswith(scopes.ORGANIZATION)
        ]
        assert without_resource == []

    def test_refuses_a_key_without_its_scope_and_names_it(
        self, app: FastAPI, client: TestClient, sessions: Sessions
    ) -> None:
        every = set(scopes.SCOPES) - {"all", "all:read"}
        for method, template in routes(app):
            needed = scopes.required_scope(method, template)
            if needed is None:
                continue
            has = sorted(every - {needed, needed.replace(":read", ":write")})
            give_scopes(sessions, has)
            answer = client.request(method, asked(template))
            assert answer.status_code == 403, (method, template, answer.text)
            if method != "HEAD":
                error = answer.json()["error"]
                assert error["code"] == "insufficient_permissions"
                assert as_json(needed) in error["message"]

    def test_lets_a_key_with_its_scope_in(self, app: FastAPI, client: TestClient, sessions: Sessions) -> None:
        for method, template in routes(app):
            if template in ENDLESS:
                continue  # test_waiting.py listens to it
            needed = scopes.required_scope(method, template)
            give_scopes(sessions, [needed] if needed else ["files:read"])
            assert client.request(method, asked(template)).status_code not in (401, 403), (method, template)

    def test_does_not_repeat_the_key_in_its_answer(self, client: TestClient) -> None:
        secret = "tnry_0123456789ab_almost-right"
        assert secret not in client.get("/v1/files", headers={"Authorization": f"Bearer {secret}"}).text

    @pytest.mark.parametrize(
        "value", ["Bearer Authorization: Bearer x-1", "Authorization: Bearer x-1", "Bearer Bearer x-1"]
    )
    def test_says_when_a_header_was_put_into_the_header(self, client: TestClient, value: str) -> None:
        answer = client.get("/v1/models", headers={"Authorization": value})
        assert answer.status_code == 401
        assert "repeats the name of the header or the word Bearer" in answer.json()["error"]["message"]
        assert "x-1" not in answer.text

    def test_checks_the_key_before_it_reads_a_json_body(self, client: TestClient) -> None:
        answer = client.post("/v1/fine_tuning/jobs", content=b"{not json", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401


class TestOpenRoutes:
    def test_need_no_key(self, client: TestClient) -> None:
        del client.headers["Authorization"]
        for path in OPEN:
            assert client.get(path).status_code != 401, path


class TestRotation:
    @pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs/ftjob-none"])
    def test_both_secrets_work_while_they_overlap(self, client: TestClient, sessions: Sessions, path: str) -> None:
        with transaction(sessions) as session:
            (key,) = session.scalars(select(ApiKey))
            second = keys.rotate(session, None, key.id, overlap_seconds=60).secret
        assert client.get(path).status_code in (200, 404)
        assert client.get(path, headers={"Authorization": f"Bearer {second}"}).status_code in (200, 404)
        with transaction(sessions) as session:
            keys.rotate(session, None, key.id, overlap_seconds=60)
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": f"Bearer {second}"}).status_code in (200, 404)


class TestLastUse:
    @pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs/ftjob-none"])
    def test_the_last_use_of_a_key_is_written_at_most_once_a_minute(
        self, client: TestClient, sessions: Sessions, path: str
    ) -> None:
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
    def test_two_keys_of_a_project_list_the_same_files(
        self, client: TestClient, sessions: Sessions, project: Project
    ) -> None:
        with transaction(sessions) as session:
            second = make_key(session, project, "second")
        client.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x"})
        listed = client.get("/v1/files", headers={"Authorization": f"bearer  {second}"}).json()["data"]
        assert len(listed) == 1


def give_scopes(sessions: Sessions, has: list[str]) -> None:
    with transaction(sessions) as session:
        session.execute(update(ApiKey).values(scopes=has))


def revoke(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        for key in session.scalars(select(ApiKey)):
            keys.revoke(session, None, key.id)


def expire(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        session.execute(update(ApiKey).values(expires_at=func.clock_timestamp()))


def rotate(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        for key in session.scalars(select(ApiKey)):
            keys.rotate(session, None, key.id, overlap_seconds=0)


def archive(sessions: Sessions, project: Project) -> None:
    with transaction(sessions) as session:
        make_project(session, "another")
        projects.archive(session, project.id, None)


ENDS: dict[str, Callable[[Sessions, Project], None]] = {
    "revoked": revoke, "expired": expire, "rotated": rotate, "archived": archive,
}  # fmt: skip
