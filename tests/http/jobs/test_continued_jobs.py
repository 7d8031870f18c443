""" "model": "ft:...": a job that goes on from an adapter that was trained here."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.db import files
from app.db.engine import Sessions, transaction
from app.db.jobs import checkpoints
from app.db.tables import File, Job, Project
from app.storage import LocalStorage
from tests.api_objects import param_of
from tests.factories import make_succeeded_job

pytestmark = pytest.mark.usefixtures("base_model")
ARGUMENTS = {"enable_thinking": False, "reasoning_effort": "low"}


@pytest.fixture
def parent(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    lora = {
        "r": 4,
        "alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "alpha_pattern": {"q_proj": 3},
    }
    with transaction(sessions) as session:
        return make_succeeded_job(session, storage, project, body={"lora": lora, "chat_template_kwargs": ARGUMENTS})


@pytest.fixture
def create(client: TestClient, training_file: str, parent: Job) -> Any:
    def send(**body: Any) -> Response:
        asked = {"model": parent.fine_tuned_model, "training_file": training_file} | body
        return client.post("/v1/fine_tuning/jobs", json=asked)

    return send


def files_of(sessions: Sessions, name: str | None) -> list[str]:
    assert name is not None
    with transaction(sessions) as session:
        return list(checkpoints.by_names(session, [name])[name].file_ids)


def purgeable(sessions: Sessions) -> list[str]:
    with transaction(sessions) as session:
        return [file.id for file in files.lock_purgeable(session)]


class TestCreate:
    def test_a_job_follows_the_earlier_adapter(self, create: Any, parent: Job, client: TestClient) -> None:
        body = create().json()
        JobBody.model_validate(body)
        assert body["model"] == parent.fine_tuned_model
        assert body["lora"] == {"experts": False} | parent.spec["lora"]
        assert client.get(f"/v1/fine_tuning/jobs/{body['id']}").json()["model"] == parent.fine_tuned_model

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [(None, ARGUMENTS), ({"enable_thinking": True}, {"enable_thinking": True}), ({}, None)],
    )
    def test_a_job_and_its_clone_have_the_template_arguments_of_the_adapter_unless_given(
        self, create: Any, client: TestClient, given: Any, wanted: Any
    ) -> None:
        body = create(chat_template_kwargs=given).json()
        clone = client.post(f"/v1/fine_tuning/jobs/{body['id']}/clone", json={}).json()
        assert (body["chat_template_kwargs"], clone["chat_template_kwargs"]) == (wanted, wanted)

    def test_a_job_continues_a_checkpoint(self, create: Any, client: TestClient, parent: Job) -> None:
        page = client.get(f"/v1/fine_tuning/jobs/{parent.id}/checkpoints").json()["data"]
        name = page[1]["fine_tuned_model_checkpoint"]
        assert ":ckpt-step-" in name
        assert create(model=name).json()["model"] == name

    def test_a_deleted_model_is_not_found(self, create: Any, client: TestClient, parent: Job) -> None:
        client.delete(f"/v1/models/{parent.fine_tuned_model}")
        assert create().status_code == 404

    def test_a_model_with_deleted_files_is_refused(
        self, create: Any, client: TestClient, sessions: Sessions, parent: Job
    ) -> None:
        client.delete(f"/v1/files/{files_of(sessions, parent.fine_tuned_model)[0]}")
        assert param_of(create()) == "model"


class TestDeletingTheParentAdapter:
    """Once a job was accepted, its parent can be forgotten like a training file; its bytes stay meanwhile."""

    def test_a_parent_adapter_is_kept_for_its_job(
        self, create: Any, client: TestClient, sessions: Sessions, parent: Job
    ) -> None:
        job_id = create().json()["id"]
        needed = files_of(sessions, parent.fine_tuned_model)
        assert client.delete(f"/v1/models/{parent.fine_tuned_model}").status_code == 200
        for file_id in needed:
            assert client.delete(f"/v1/files/{file_id}").status_code == 200
        assert not set(purgeable(sessions)) & set(needed)
        client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        assert set(purgeable(sessions)) == set(needed)

    def test_other_checkpoints_are_not_kept(
        self, create: Any, client: TestClient, sessions: Sessions, parent: Job
    ) -> None:
        create()
        page = client.get(f"/v1/fine_tuning/jobs/{parent.id}/checkpoints").json()["data"]
        other = page[2]["result_files"][0]
        client.delete(f"/v1/files/{other}")
        assert purgeable(sessions) == [other]

    def test_while_a_job_is_being_created_nothing_is_purged(
        self, sessions: Sessions, parent: Job, project: Project
    ) -> None:
        needed = files_of(sessions, parent.fine_tuned_model)
        with transaction(sessions) as creating:
            assert files.lock_content(creating, project.id, needed) == len(needed)
            with transaction(sessions) as session:
                files.delete_all(session, needed)
            assert purgeable(sessions) == []
        assert set(purgeable(sessions)) == set(needed)
        with transaction(sessions) as session:
            assert session.get_one(File, needed[0]).purged_at is None
