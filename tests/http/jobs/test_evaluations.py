from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.evaluations import EvaluationBody
from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.jobs import evaluations, leases
from app.db.jobs.leases import FencedError, Lease
from app.db.scheduling import device_losses
from app.db.tables import Evaluation, Job, Project
from app.domain.evaluations.spec import EvaluationErrorCode
from app.domain.jobs.states import Reason
from app.settings import Endpoint, Settings
from app.storage import LocalStorage
from tests.api_objects import error_of, param_of
from tests.factories import fail_attempt, make_file

JOBS = "/v1/fine_tuning/jobs"
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.reference_answer }}",
    "operation": "eq",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"endpoints": {"judge": Endpoint(base_url="http://127.0.0.1:9/v1")}})


@pytest.fixture
def heldout(sessions: Sessions, storage: LocalStorage, project: Project) -> str:
    with transaction(sessions) as session:
        return make_file(session, storage, project, None, "evals", "heldout.jsonl", line_count=None).id


def path(job: Job, *rest: str) -> str:
    return "/".join((JOBS, job.id, "evaluations", *rest))


def ask(client: TestClient, job: Job, file_id: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path(job), json={"file": file_id, "graders": [EXACT]} | body)
    assert answer.status_code == 200, answer.text
    EvaluationBody.model_validate(answer.json())
    return dict(answer.json())


class TestAsking:
    def test_a_new_evaluation_is_shown_in_its_job(self, client: TestClient, succeeded: Job, heldout: str) -> None:
        evaluation = ask(client, succeeded, heldout)
        assert (evaluation["status"], evaluation["model"]) == ("queued", succeeded.fine_tuned_model)
        assert evaluation["settings"]["max_rows"] == 500
        job = client.get(f"{JOBS}/{succeeded.id}").json()
        JobBody.model_validate(job)
        assert (job["evaluation"]["id"], job["evaluation"]["status"]) == (evaluation["id"], "queued")

    def test_the_plan_has_the_rows_of_a_counted_file(self, client: TestClient, succeeded: Job) -> None:
        plan = ask(client, succeeded, succeeded.training_file_id, max_rows=5)["plan"]
        assert (plan["rows"], plan["max_answer_tokens"], plan["basis"]) == (5, 2 * 5 * 256, "training_speed")

    def test_a_kept_checkpoint_is_named_by_id_or_name(self, client: TestClient, succeeded: Job, heldout: str) -> None:
        first = client.get(f"{JOBS}/{succeeded.id}/checkpoints").json()["data"][-1]
        assert ask(client, succeeded, heldout, checkpoint=first["id"])["step_number"] == 1

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"file": None}, "file"),
            ({"file": "file-none"}, "file"),
            ({"graders": [{"type": "regex"}]}, "graders.0"),
            ({"graders": [EXACT | {"operation": "neq"}]}, "graders.0.operation"),
            ({"graders": [EXACT | {"refrence": "x"}]}, "graders.0.refrence"),
            ({"graders": [EXACT | {"input": "{{ row.x }}"}]}, "graders.0.input"),
            ({"graders": [EXACT, EXACT]}, "graders"),
            ({"promote_if": {"grader": "other"}}, "promote_if"),
            ({"max_rows": 100_000}, "max_rows"),
            ({"reference": {"model": "m", "endpoint": "other"}}, "reference.endpoint"),
            ({"reference": {}}, "reference"),
            ({"checkpoint": "ftckpt_none"}, "checkpoint"),
        ],
    )
    def test_a_refusal_names_the_parameter(
        self, client: TestClient, succeeded: Job, heldout: str, body: dict[str, Any], param: str
    ) -> None:
        assert param_of(client.post(path(succeeded), json={"file": heldout, "graders": [EXACT]} | body)) == param

    def test_a_file_of_another_purpose_is_refused(
        self, client: TestClient, succeeded: Job, sessions: Sessions, storage: LocalStorage, project: Project
    ) -> None:
        with transaction(sessions) as session:
            other = make_file(session, storage, project, None, "batch").id
        assert param_of(client.post(path(succeeded), json={"file": other, "graders": []})) == "file"

    def test_a_job_without_a_result_is_not_evaluated(self, client: TestClient, job: Job, heldout: str) -> None:
        assert error_of(client.post(path(job), json={"file": heldout}))["code"] == "invalid_job_state"

    @pytest.mark.parametrize("is_plan", [False, True])
    def test_templates_have_64_000_bytes_together(
        self, client: TestClient, succeeded: Job, heldout: str, is_plan: bool
    ) -> None:
        graders = [EXACT | {"name": str(number), "input": "x" * 16_001, "reference": ""} for number in range(4)]
        evaluation = {"file": heldout, "graders": graders}
        job = {"model": succeeded.base_model, "training_file": succeeded.training_file_id, "evaluation": evaluation}
        answer = client.post(f"{JOBS}/plan", json=job) if is_plan else client.post(path(succeeded), json=evaluation)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "evaluation.graders" if is_plan else "graders")


class TestReading:
    def test_a_failed_one_says_why_there_and_in_the_job(
        self, client: TestClient, succeeded: Job, heldout: str, sessions: Sessions
    ) -> None:
        evaluation_id = ask(client, succeeded, heldout)["id"]
        with transaction(sessions) as session:
            for _ in range(device_losses.MAX_IN_A_ROW):
                device_losses.count(session, "broken#1", "ftjob-1", Reason.DEVICE_LOST)
            assert evaluations.claim(session, "broken#2", 60) is None  # its GPU is out of service
            held = evaluations.claim(session, "a#1", 60)
            assert held is not None
            fail_attempt(session, Evaluation, Lease(held.id, 1, "a#1"), EvaluationErrorCode.INVALID_FILE, "Line 1: no.")
        error = {"code": "invalid_evaluation_file", "message": "Line 1: no."}
        seen = client.get(path(succeeded, evaluation_id)).json()
        assert (seen["status"], seen["error"]) == ("failed", error)
        assert client.get(f"{JOBS}/{succeeded.id}").json()["evaluation"]["error"] == error


class TestCancelling:
    def test_a_cancel_fences_the_worker_and_may_be_repeated(
        self, client: TestClient, succeeded: Job, heldout: str, sessions: Sessions
    ) -> None:
        evaluation_id = ask(client, succeeded, heldout)["id"]
        with transaction(sessions) as session:
            assert evaluations.claim(session, "a#1", 60) is not None
        for _ in range(2):
            answer = client.post(path(succeeded, evaluation_id, "cancel"))
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        with transaction(sessions) as session, pytest.raises(FencedError):
            leases.read_held(session, Evaluation, Lease(evaluation_id, 1, "a#1"))

    def test_an_ended_evaluation_is_not_cancelled(
        self, client: TestClient, succeeded: Job, heldout: str, sessions: Sessions
    ) -> None:
        evaluation_id = ask(client, succeeded, heldout)["id"]
        with transaction(sessions) as session:
            evaluations.claim(session, "a#1", 60)
            fail_attempt(session, Evaluation, Lease(evaluation_id, 1, "a#1"), EvaluationErrorCode.SERVER_ERROR, "x")
        assert error_of(client.post(path(succeeded, evaluation_id, "cancel")))["code"] == "invalid_evaluation_state"


class TestWithAJob:
    def test_an_evaluation_is_requested_with_a_job_and_cloned(
        self, client: TestClient, sessions: Sessions, base_model: str, heldout: str, succeeded: Job
    ) -> None:
        body = {
            "model": base_model,
            "training_file": succeeded.training_file_id,
            "evaluation": {"file": heldout, "graders": [EXACT], "promote_if": {"grader": "exact", "margin": 0.1}},
        }
        made = client.post(JOBS, json=body).json()
        JobBody.model_validate(made)
        assert (made["evaluation"]["status"], made["evaluation"]["file"]) == ("requested", heldout)
        clone = client.post(f"{JOBS}/{made['id']}/clone").json()
        assert clone["evaluation"]["status"] == "requested"
        with transaction(sessions) as session:
            spec = session.get_one(Job, clone["id"]).spec
        assert spec["evaluation"]["promote_if"] == {"grader": "exact", "margin": 0.1}

    def test_problems_of_an_evaluation_are_reported_with_the_others(
        self, client: TestClient, base_model: str, succeeded: Job
    ) -> None:
        body = {
            "model": base_model,
            "training_file": succeeded.training_file_id,
            "lora": {"r": 0},
            "evaluation": {"file": "file-none", "reference": {"model": "m", "endpoint": "other"}},
        }
        answer = client.post(JOBS, json=body)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert all(part in message for part in ("lora.r", "evaluation.file", "evaluation.reference.endpoint"))
