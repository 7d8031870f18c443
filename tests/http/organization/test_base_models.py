"""Base models for admins: the list with directories, removal, registrations, and paths as hostile input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from tests.api_objects import error_of, param_of

MODELS, REGISTRATIONS = "/v1/organization/base_models", "/v1/organization/base_model_registrations"
ROOT = "/srv/models"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"base_model_directories": (ROOT, "/mnt/more/")})


def register(admin: TestClient, name: str = "new", directory: str = f"{ROOT}/new", **body: Any) -> Any:
    return admin.post(REGISTRATIONS, json={"name": name, "directory": directory} | body)


def test_the_list_has_directories_and_lacks_a_removed_model(admin: TestClient, base_model: str, tmp_path: Path) -> None:
    [listed] = admin.get(MODELS).json()["data"]
    assert (listed["id"], listed["directory"]) == (base_model, str(tmp_path / "models" / base_model))
    trainings = [(one["bits"], one["document_tokens"], one["card_gigabytes"]) for one in listed["memory"]]
    assert trainings == [(4, 2048, 8), (4, 8192, 8), (16, 2048, 8)]
    assert admin.delete(f"{MODELS}/{base_model}").json()["deleted"] is True
    assert admin.get(MODELS).json()["data"] == []
    assert error_of(admin.delete(f"{MODELS}/{base_model}"), 404)["code"] == "model_not_found"
    assert (tmp_path / "models" / base_model / "config.json").exists()


def test_a_registration_waits_for_a_worker_and_is_listed(admin: TestClient) -> None:
    made = register(
        admin, "Org/New-1B", "/mnt/more/new", source="Org/New-1B", revision="v1", learning_rate=0.001
    ).json()
    assert (made["status"], made["started_at"], made["error"]) == ("queued", None, None)
    assert admin.get(f"{REGISTRATIONS}/{made['id']}").json() == made
    newest = register(admin).json()
    assert [each["id"] for each in admin.get(REGISTRATIONS).json()["data"]] == [newest["id"], made["id"]]
    assert admin.get(REGISTRATIONS, params={"after": newest["id"]}).json()["data"] == [made]
    assert admin.get(f"{REGISTRATIONS}/basereg_none").status_code == 404


def test_two_operators_who_register_the_same_name_at_once_get_one_registration(admin: TestClient) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = [each.result() for each in [pool.submit(register, admin) for _ in range(4)]]
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert {answer.json()["error"]["param"] for answer in answers if answer.status_code == 400} == {"name"}


def test_without_a_directory_a_worker_downloads_the_source(admin: TestClient, settings: Settings) -> None:
    assert param_of(admin.post(REGISTRATIONS, json={"name": "new"})) == "source"
    settings.base_model_pull_directory = "/srv/pulled"
    made = admin.post(REGISTRATIONS, json={"name": "new", "source": "Org/New-1B", "revision": "main"}).json()
    assert (made["pull"], made["status"], made["directory"], made["revision"]) == (
        True,
        "queued",
        "/srv/pulled",
        "main",
    )
    assert admin.get(f"{REGISTRATIONS}/{made['id']}").json() == made


@pytest.mark.parametrize(
    "directory",
    [
        "/etc", "", "models/new", ROOT, f"{ROOT}/../../etc", f"{ROOT}//new", f"{ROOT}2/new", "/srv/models\u0001/new",
    ],
)  # fmt: skip
def test_a_directory_outside_the_allowed_ones_is_refused(admin: TestClient, directory: str) -> None:
    assert param_of(register(admin, directory=directory)) == "directory"
    assert admin.get(REGISTRATIONS).json()["data"] == []


def test_every_problem_is_named_at_once(admin: TestClient) -> None:
    message = register(admin, "ft:x", "/etc", learning_rate=2, source="no-slash", revision="../x").json()["error"][
        "message"
    ]
    for part in ("name:", "directory:", "learning_rate:", "source:", "revision:"):
        assert part in message
