from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.db.engine import Sessions, transaction
from app.db.tables import File, Job
from tests.http.conftest import Upload
from tests.http.test_auth import asked, every_route
from tests.sentences import Reviewed

JOBS = "/v1/fine_tuning/jobs"
LOG = "/v1/organization/audit_logs"


def error_of(answer: Response, request_text: str = "") -> dict[str, Any]:
    assert answer.status_code == 400, f"{request_text}: {answer.status_code} {answer.text[:300]}"
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code", "doc_url"}
    assert body["error"]["type"] == "invalid_request_error"
    return dict(body["error"])


def calls(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path with made-up ids) of every route under /v1, whether the document has it or not."""
    found = [(method, asked(route.path_format)) for route in every_route(app) for method in sorted(route.methods)]
    return sorted({call for call in found if call[1].startswith("/v1")})


def choices(operation: dict[str, Any]) -> dict[str, list[Any]]:
    """The query parameters of an operation that have a fixed set of values."""
    found = {}
    for parameter in operation.get("parameters", ()):
        schemas = [parameter["schema"], *parameter["schema"].get("anyOf", ())]
        schemas += [schema["items"] for schema in schemas if "items" in schema]
        allowed = [value for schema in schemas for value in schema.get("enum", ())]
        if parameter["in"] == "query" and allowed:
            found[parameter["name"]] = allowed
    return found


def with_ids(path: str, job: Job) -> str:
    """A path with ids that exist, as far as a job has any."""
    return path.replace("{model}", job.fine_tuned_model or "").replace("{job_id}", job.id)


class TestAnUnknownParameter:
    def test_every_route_refuses_an_unknown_parameter(self, app: FastAPI, admin: TestClient) -> None:
        found = calls(app)
        assert len(found) >= 70
        for method, path in found:
            answer = admin.request(method, f"{path}?zzz=1")
            assert answer.status_code == 400, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
            if method != "HEAD":
                error = error_of(answer, f"{method} {path}")
                assert (error["code"], error["param"]) == ("unknown_parameter", "zzz")
                assert '"zzz"' in error["message"]

    @pytest.mark.parametrize("prefix", ["/v1", "/openai", "/openai/v1"])
    def test_an_unknown_parameter_is_named_with_a_suggestion(self, client: TestClient, prefix: str) -> None:
        error = error_of(client.get(f"{prefix}/fine_tuning/jobs?statu=failed"))
        assert error["message"] == (
            'unknown query parameter "statu" (did you mean "status"?); known here: after, created_after, '
            "created_before, file, group, limit, metadata[key], order, order_by, search, status"
        )

    def test_an_unknown_parameter_is_named_with_all_other_problems(self, client: TestClient) -> None:
        error = error_of(client.get("/v1/files?limit=abc&purpos=batch&order=foo&limt=1&after=a&after=b"))
        assert (error["param"], error["code"]) == ("purpos", "unknown_parameter")
        for part in ('"purpos" (did you mean "purpose"?)', '"limt" (did you mean "limit"?)', "after: given more"):
            assert part in error["message"]
        for name in ("limit: ", "order: "):
            assert name in error["message"]

    @pytest.mark.parametrize(
        ("url", "meant"),
        [
            (f"{JOBS}?metdata[x]=1", "metadata[key]"),
            (f"{JOBS}?metadata.x=1", "metadata[key]"),
            (f"{LOG}?effectiv_at[gte]=1", "effective_at[gte]"),
            (f"{LOG}?project_ids=p", "project_ids[]"),
            (f"{JOBS}/ftjob-x?waits=1", "wait"),
            ("/v1/events/stream?after=1", None),
            (f"{JOBS}/ftjob-x/events/stream?aftr=1", "after"),
            ("/v1/files/file-x/content?download=1", None),
        ],
    )  # fmt: skip
    def test_unknown_parameters_in_brackets_and_of_streams_are_refused(
        self, admin: TestClient, url: str, meant: str | None
    ) -> None:
        error = error_of(admin.get(url))
        assert error["code"] == "unknown_parameter"
        assert (f'did you mean "{meant}"?' in error["message"]) == (meant is not None)

    def test_a_refused_parameter_creates_nothing(self, client: TestClient, sessions: Sessions, upload: Upload) -> None:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", b"{}")}}
        answer = client.post("/v1/files?purpose=batch", headers={"Idempotency-Key": "k"}, **form)
        assert error_of(answer)["param"] == "purpose"
        with transaction(sessions) as session:
            assert session.scalar(select(func.count()).select_from(File)) == 0
        assert upload().status_code == 200

    def test_the_key_and_the_scope_are_checked_before_parameters(
        self, client: TestClient, app: FastAPI, sessions: Sessions, api_key: str
    ) -> None:
        answer = client.get(f"{JOBS}?zzz=1", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert client.get(f"{LOG}?zzz=1").status_code == 403

    def test_an_unknown_url_with_a_parameter_is_a_404(self, client: TestClient) -> None:
        answer = client.get("/v1/nothing?zzz=1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
        assert client.patch(f"{JOBS}?zzz=1").status_code == 405

    def test_paths_without_a_key_ignore_unknown_parameters(self, client: TestClient) -> None:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.get(f"{path}?zzz=1").status_code in (200, 503)

    def test_many_and_long_unknown_parameters_get_a_short_message(self, client: TestClient) -> None:
        many = "&".join(f"{'x' * 100}{number}=1" for number in range(400))
        error = error_of(client.get(f"{JOBS}?{many}"))
        assert "and 390 more" in error["message"]
        assert len(error["message"]) < 2_000
        assert len(error_of(client.get(f"{JOBS}?{'s' * 40_000}=1"))["param"]) == 60

    def test_an_unknown_parameter_without_value_or_name_is_refused(self, client: TestClient) -> None:
        for query in ("zzz", "zzz=", "=1", f"{quote('größe')}=1"):
            assert error_of(client.get(f"{JOBS}?{query}"))["code"] == "unknown_parameter"
        for query in ("", "&", "&&"):
            assert client.get(f"{JOBS}?{query}").status_code == 200


class TestAKnownParameter:
    def test_every_route_accepts_the_api_version_of_azure(self, app: FastAPI, admin: TestClient) -> None:
        for method, path in calls(app):
            if "stream" in path and "{" not in path and path.startswith("/v1/events"):
                continue  # without an end
            answer = admin.request(method, f"{path}?api-version=2024-10-21&api-version=preview")
            assert "api-version" not in answer.text, f"{method} {path}"
            assert answer.status_code != 400 or "query parameter" not in answer.text, f"{method} {path}"

    @pytest.mark.parametrize(
        ("url", "param"),
        [
            ("/v1/files?limit=1&limit=2", "limit"),
            (f"{JOBS}?after=ftjob-a&after=ftjob-b", "after"),
            (f"{JOBS}?metadata[a]=x&metadata[a]=y", "metadata[a]"),
            (f"{JOBS}/ftjob-x?wait=0&wait=1", "wait"),
        ],
    )
    def test_a_parameter_given_twice_is_refused(self, client: TestClient, url: str, param: str) -> None:
        error = error_of(client.get(url))
        assert error["param"] == param
        assert "once" in error["message"]

    def test_a_parameter_with_choices_refuses_other_values(
        self, app: FastAPI, admin: TestClient, succeeded: Job
    ) -> None:
        seen = set()
        hook = {"name": "jobs", "url": "https://example.com", "event_types": ["fine_tuning.job.failed"]}
        endpoint = admin.post("/v1/webhook_endpoints", json=hook).json()
        for path, item in app.openapi()["paths"].items():
            for method, operation in item.items():
                for name, allowed in choices(operation).items():
                    url = with_ids(path, succeeded).replace("{endpoint_id}", endpoint["id"])
                    for value in ("zzz", "", str(allowed[0]).upper()):
                        error = error_of(admin.request(method, url, params={name: value}), f"{url}?{name}={value}")
                        assert error["param"] == name
                        assert all(str(one) in error["message"] for one in allowed), error["message"]
                    seen.add(f"{path} {name}")
        assert {f"{JOBS} status", "/v1/files order", "/v1/files purpose"} <= seen

    @pytest.mark.parametrize("query", ["wait=abc", "wait=", "wait=-1", "wait=nan", "wait=-inf", "wait=true"])
    def test_wait_that_is_no_number_of_seconds_is_refused(self, client: TestClient, succeeded: Job, query: str) -> None:
        assert error_of(client.get(f"{JOBS}/{succeeded.id}?{query}"))["param"] == "wait"

    @pytest.mark.parametrize("query", ["max_points=1", "max_points=201", "max_points=1&zzz=1"])
    def test_a_number_beyond_a_bound_is_refused_with_both_bounds(
        self, client: TestClient, query: str, reviewed: Reviewed
    ) -> None:
        error = error_of(client.get(f"/v1/fine_tuning/loss_curves?jobs=ftjob-x&{query}"))
        reviewed(error["message"])


class TestABodyThatACallDoesNotTake:
    def test_a_body_of_a_call_without_one_is_refused_if_it_has_keys(
        self, app: FastAPI, admin: TestClient, succeeded: Job
    ) -> None:
        found = []
        for path, item in app.openapi()["paths"].items():
            if "post" not in item or "requestBody" in item["post"]:
                continue
            error = error_of(admin.post(with_ids(path, succeeded), json={"cancel_jobs": True, "b": 1}), path)
            assert (error["param"], error["code"]) == ("cancel_jobs", "unknown_parameter")
            assert "takes no body" in error["message"]
            assert "b" in error["message"]
            found.append(path)
        assert {f"{JOBS}/{{job_id}}/cancel", "/v1/files/{file_id}/validate"} <= set(found)

    @pytest.mark.parametrize("content", [b"", b"{}", b"null", b"[]", b"rubbish", b"\xff"])
    def test_a_body_of_a_call_without_one_is_ignored_if_it_has_no_keys(
        self, client: TestClient, succeeded: Job, content: bytes
    ) -> None:
        answer = client.post(f"{JOBS}/{succeeded.id}/cancel", content=content)
        assert answer.json()["error"]["code"] == "invalid_job_state"
