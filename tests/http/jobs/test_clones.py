from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.api.schemas.plans import DiffBody
from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.api_objects import error_of, param_of
from tests.factories import chat_lines, finish_job, make_file, make_job, start_job, validate_job
from tests.http.conftest import Upload

JOBS = "/v1/fine_tuning/jobs"
STARTED = {
    "device": "NVIDIA L4", "compute_dtype": "bfloat16", "threads": 4, "examples": 12, "tokens_per_epoch": 400,
    "labelled_tokens_per_epoch": 98, "versions": {"torch": "2.13.0", "python": "3.11.9"},
}  # fmt: skip
SAME = ("model", "training_file", "validation_file", "seed", "lora", "quantization", "sample_prompts", "metadata",
        "chat_template_kwargs", "user_provided_suffix")  # fmt: skip


@pytest.fixture
def original(client: TestClient, base_model: str, upload: Upload) -> dict[str, Any]:
    ids = [upload(content).json()["id"] for content in (chat_lines(), chat_lines(3))]
    body = {
        "model": base_model, "training_file": ids[0], "validation_file": ids[1], "suffix": "demo",
        "metadata": {"team": "a"}, "sample_prompts": ["say 3"], "lora": {"r": 4},
        "chat_template_kwargs": {"enable_thinking": False},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "eval_steps": 3}}},
    }  # fmt: skip
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def hyperparameters(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["method"]["supervised"]["hyperparameters"])


class TestClone:
    def test_a_clone_has_the_values_of_the_original(self, client: TestClient, original: dict[str, Any]) -> None:
        answer = client.post(f"{JOBS}/{original['id']}/clone")
        assert answer.status_code == 200, answer.text
        clone = answer.json()
        JobBody.model_validate(clone)
        assert clone["id"] != original["id"]
        assert (clone["cloned_from"], original["cloned_from"]) == (original["id"], None)
        assert original["request"]["lora"] == {"r": 4}  # as it was asked, without the resolved values
        assert {key: clone[key] for key in SAME} == {key: original[key] for key in SAME}
        assert clone["request"] == {}
        written_out = {"learning_rate_multiplier": None}
        assert hyperparameters(clone) == hyperparameters(original) | written_out
        assert client.get(f"{JOBS}/{clone['id']}").json()["cloned_from"] == original["id"]

    def test_a_clone_merges_its_changes(self, client: TestClient, original: dict[str, Any]) -> None:
        changes = {"lora": {"alpha": 32}, "hyperparameters": {"n_epochs": 5}, "metadata": {"try": "2"}, "seed": 9}
        changes["chat_template_kwargs"] = {"enable_thinking": None, "reasoning_effort": "low"}
        clone = client.post(f"{JOBS}/{original['id']}/clone", json=changes).json()
        assert clone["lora"] == original["lora"] | {"alpha": 32}
        assert (hyperparameters(clone)["n_epochs"], hyperparameters(clone)["eval_steps"]) == (5, 3)
        assert clone["chat_template_kwargs"] == {"reasoning_effort": "low"}
        assert clone["request"] == changes
        assert (clone["metadata"], clone["seed"]) == ({"team": "a", "try": "2"}, 9)

    def test_a_clone_is_as_urgent_as_the_original(
        self, client: TestClient, sessions: Sessions, project: Project, original: dict[str, Any]
    ) -> None:
        """By a key that may not: refused, with the key of the body that decides it."""
        with transaction(sessions) as session:
            session.get_one(Job, original["id"]).urgent = True
        assert error_of(client.post(f"{JOBS}/{original['id']}/clone"), 403)["param"] == "urgent"
        assert client.post(f"{JOBS}/{original['id']}/clone", json={"urgent": False}).json()["urgent"] is False
        with transaction(sessions) as session:
            session.get_one(Project, project.id).may_be_urgent = True
        assert client.post(f"{JOBS}/{original['id']}/clone").json()["urgent"] is True

    @pytest.mark.parametrize(
        ("changes", "param", "code"),
        [
            ({"lora": {"r": 0}}, "lora.r", "invalid_value"),
            ({"sead": 1}, "sead", "unknown_parameter"),
            ({"validation_file": None}, "method.supervised.hyperparameters.eval_steps", "invalid_value"),
            ({"training_file": None}, "training_file", "invalid_type"),
            ({"metadata": {str(n): "x" for n in range(16)}}, "metadata", "invalid_value"),
        ],
        ids=["bound", "typo", "parameter without its file", "null", "too much metadata"],
    )
    def test_what_create_refuses_is_refused(
        self, client: TestClient, original: dict[str, Any], changes: dict[str, Any], param: str, code: str
    ) -> None:
        answer = client.post(f"{JOBS}/{original['id']}/clone", json=changes)
        assert answer.status_code == 400, answer.text
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)
        assert len(client.get(JOBS).json()["data"]) == 1

    def test_a_deleted_file_must_be_replaced(
        self, client: TestClient, original: dict[str, Any], upload: Upload
    ) -> None:
        for name in ("training_file", "validation_file"):
            client.delete(f"/v1/files/{original[name]}")
        error = client.post(f"{JOBS}/{original['id']}/clone").json()["error"]
        assert (error["code"], error["param"]) == ("file_deleted", "training_file")
        assert original["training_file"] in error["message"]
        assert original["validation_file"] in error["message"]
        new = {name: upload().json()["id"] for name in ("training_file", "validation_file")}
        assert client.post(f"{JOBS}/{original['id']}/clone", json=new).status_code == 200


@pytest.fixture
def finished(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> list[Job]:
    """Two jobs on the same bytes, uploaded twice; the second with another rank, on another torch."""
    jobs = []
    for rank, torch in ((8, "2.13.0"), (16, "2.14.0")):
        with transaction(sessions) as session:
            file = make_file(session, storage, project)
            make_job(session, project, file, body={"lora": {"r": rank, "alpha": 16}, "seed": 7})
            validate_job(session)
            job = start_job(session, owner=f"gpu0@a#{rank}")
            said = STARTED | {"versions": STARTED["versions"] | {"torch": torch}}  # type: ignore[operator]
            claims.append_event(session, lease_of(job), "Training on NVIDIA L4", data=said)
            jobs.append(finish_job(session, storage, project, job))
    return jobs


class TestDiff:
    def test_a_diff_marks_what_differs(self, client: TestClient, finished: list[Job]) -> None:
        left, right = finished
        answer = client.get(f"{JOBS}/{left.id}/diff", params={"with": right.id})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        DiffBody.model_validate(body)
        assert (body["left"]["id"], body["right"]["id"]) == (left.id, right.id)
        assert body["left"]["training_file"] != body["right"]["training_file"]
        apart = {section: self.differing(body[section]) for section in ("data", "config", "environment")}
        assert apart == {
            "data": {},
            "config": {"lora.r": (8, 16)},
            "environment": {"versions.torch": ("2.13.0", "2.14.0")},
        }
        assert self.values(body["data"])["training_file.rows"] == (12, 12)
        assert self.values(body["environment"])["worker"] == ("gpu0@a", "gpu0@a")
        config = self.values(body["config"])
        assert {"hyperparameters.learning_rate", "quantization.bits", "lora.target_modules", "seed"} <= config.keys()
        result = self.values(body["result"])
        assert result["status"] == ("succeeded", "succeeded")
        assert result["train_loss"] == (pytest.approx(1 / 3), pytest.approx(1 / 3))
        assert result["trained_tokens"] == (1234, 1234)
        for section in ("data", "config", "environment", "result"):
            assert body[section]["differences"] == len(self.differing(body[section]))

    def test_a_job_that_has_not_run_is_compared_as_far_as_it_goes(
        self, client: TestClient, finished: list[Job], training_file: str
    ) -> None:
        new = client.post(JOBS, json={"model": "tiny", "training_file": training_file}).json()["id"]
        body = client.get(f"{JOBS}/{new}/diff", params={"with": finished[0].id}).json()
        assert self.values(body["environment"])["device"] == (None, "NVIDIA L4")
        assert (self.differing(body["data"]), self.differing(body["environment"])) == ({}, {})
        assert self.values(body["result"])["status"] == ("validating_files", "succeeded")

    def test_the_other_job_must_be_named(self, client: TestClient, finished: list[Job]) -> None:
        path = f"{JOBS}/{finished[0].id}/diff"
        assert param_of(client.get(path)) == "with"
        assert error_of(client.get(path, params={"with": "ftjob-unknown"}), 404)["param"] == "with"

    def values(self, section: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {row["path"]: (row["left"], row["right"]) for row in section["values"]}

    def differing(self, section: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {row["path"]: (row["left"], row["right"]) for row in section["values"] if row["differs"]}
