"""What every resource does alike: pages of its list, ids that nobody or another project has, and unknown fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.db.tables import Job
from app.settings import Settings

MODELS = "/srv/models"
VLLM = {"kind": "vllm", "urls": ["https://engine.example.com"]}
EVENTS = ["fine_tuning.job.succeeded"]
QUANTIZATIONS = ("F16", "Q8_0", "Q4_K_M")
NOT_FOUND = (404, "not_found")
OF_JOB = "/v1/fine_tuning/jobs/{job_id}"


@dataclass(frozen=True)
class Resource:
    path: str
    body: Callable[[int, Job], dict[str, Any]]  # of a creation, by its number
    can_be_changed: bool = False

    @property
    def foreign_list(self) -> tuple[int, str] | None:
        """The error of the list with the key of another project; None if its list is empty."""
        if self.path.startswith("/v1/organization"):
            return 403, "insufficient_permissions"
        return NOT_FOUND if self.path.startswith(OF_JOB) else None


RESOURCES = {
    "files": Resource("/v1/files", lambda *_: {"purpose": "batch"}, can_be_changed=True),
    "jobs": Resource(
        "/v1/fine_tuning/jobs",
        lambda _, job: {"model": job.base_model, "training_file": job.training_file_id},
        can_be_changed=True,
    ),
    "evaluations": Resource(f"{OF_JOB}/evaluations", lambda _, job: {"file": job.training_file_id}),
    "exports": Resource(f"{OF_JOB}/exports", lambda number, _: {"type": "gguf", "quantization": QUANTIZATIONS[number]}),
    "deliveries": Resource(f"{OF_JOB}/deliveries", lambda number, _: {"target": f"t{number}"}),
    "delivery targets": Resource(
        "/v1/delivery_targets", lambda number, _: {"name": f"n{number}", "destination": VLLM}, can_be_changed=True
    ),
    "webhook endpoints": Resource(
        "/v1/webhook_endpoints",
        lambda *_: {"name": "a", "url": "https://hooks.example.com/", "event_types": EVENTS},
        can_be_changed=True,
    ),
    "projects": Resource("/v1/organization/projects", lambda number, _: {"name": f"p{number}"}, can_be_changed=True),
    "keys": Resource("/v1/organization/projects/{project_id}/api_keys", lambda *_: {"name": "a"}, can_be_changed=True),
    "registrations": Resource(
        "/v1/organization/base_model_registrations",
        lambda number, _: {"name": f"m{number}", "directory": f"{MODELS}/m{number}"},
    ),
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"base_model_directories": (MODELS,)})


@pytest.fixture(params=RESOURCES)
def resource(request: pytest.FixtureRequest) -> Resource:
    return RESOURCES[request.param]


@pytest.fixture
def path(resource: Resource, admin: TestClient, succeeded: Job) -> str:
    if resource.path.endswith("/deliveries"):
        for number in range(3):
            admin.post("/v1/delivery_targets", json={"name": f"t{number}", "destination": VLLM}).raise_for_status()
    return resource.path.format(job_id=succeeded.id, project_id=succeeded.project_id)


@pytest.fixture
def create(resource: Resource, path: str, admin: TestClient, succeeded: Job) -> Callable[..., Response]:
    def send(number: int = 0, **more: Any) -> Response:
        body = resource.body(number, succeeded) | more
        if path == "/v1/files":
            return admin.post(path, data=body, files={"file": ("a", b"x")})
        return admin.post(path, json=body)

    return send


def error_of(answer: Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_a_list_is_paged_newest_first(path: str, admin: TestClient, create: Callable[..., Response]) -> None:
    made = [create(number).raise_for_status().json()["id"] for number in range(3)]
    first = admin.get(path, params={"limit": 2}).json()
    assert (first["object"], [each["id"] for each in first["data"]]) == ("list", made[:0:-1])
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, made[2], made[1])
    rest = admin.get(path, params={"after": made[1], "limit": 99_999}).json()
    assert (rest["data"][0]["id"], rest["has_more"]) == (made[0], False)
    assert admin.get(path, params={"after": made[0], "limit": 1}).json()["data"] == rest["data"][1:2]
    assert error_of(admin.get(path, params={"after": "none"})) == (400, "invalid_value", "after")
    assert error_of(admin.get(path, params={"limit": 0})) == (400, "invalid_value", "limit")


def test_an_id_is_read_by_its_project_alone(
    resource: Resource, path: str, admin: TestClient, create: Callable[..., Response], foreign_headers: dict[str, str]
) -> None:
    made = create().raise_for_status().json()["id"]
    assert admin.get(f"{path}/{made}").json()["id"] == made
    assert error_of(admin.get(f"{path}/none"))[:2] == NOT_FOUND
    assert error_of(admin.get(f"{path}/{made}", headers=foreign_headers))[:2] == (resource.foreign_list or NOT_FOUND)
    page, listed = (admin.get(path, headers=foreign_headers, params=query) for query in ({"after": made}, {}))
    if resource.foreign_list is None:
        assert (error_of(page)[:2], listed.json()["data"]) == ((400, "invalid_value"), [])
    else:
        assert {error_of(answer)[:2] for answer in (page, listed)} == {resource.foreign_list}


def test_an_unknown_field_is_refused(
    resource: Resource, path: str, admin: TestClient, create: Callable[..., Response]
) -> None:
    assert error_of(create(zzz="1")) == (400, "unknown_parameter", "zzz")
    if resource.can_be_changed:
        made = create().raise_for_status().json()["id"]
        answer = admin.post(f"{path}/{made}", json={"zzz": 1})
        assert (answer.status_code, "zzz" in answer.json()["error"]["message"]) == (400, True)
