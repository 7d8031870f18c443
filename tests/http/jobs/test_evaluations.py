from __future__ import annotations

import io
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.schemas.evaluations import EvaluationBody, EvaluationRowBody
from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.jobs import evaluations, leases
from app.db.jobs.leases import FencedError, Lease
from app.db.scheduling import device_losses
from app.db.tables import Evaluation, Job, Project
from app.domain.evaluations.graders import EvaluationSettings
from app.domain.evaluations.results import index_rows
from app.domain.evaluations.spec import EvaluationErrorCode
from app.domain.jobs.states import Reason
from app.settings import Endpoint, Settings
from app.storage import LocalStorage
from tests.api_objects import EVALUATION, error_of, param_of
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


def finish(sessions: Sessions, storage: LocalStorage, project: Project, rows: list[dict[str, Any]]) -> str:
    """End the queued evaluation as a worker does; returns the id of its results file."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with transaction(sessions) as session:
        held = evaluations.claim(session, "a#1", 60)
        assert held is not None
        name, purpose = "evaluation_results.jsonl", "fine-tune-results"
        file_id = make_file(session, storage, project, content, purpose, name, line_count=None).id
        index = index_rows(io.BytesIO(content), EvaluationSettings.model_validate(held.settings))
        columns: dict[str, Any] = {"summary": EVALUATION["summary"], "row_index": index.model_dump()}
        evaluations.succeed(
            session, Lease(held.id, 1, "a#1"), "done", precision="16 bits", results_file_id=file_id, **columns
        )
    return file_id


def result_row(line: int, base: float, adapter: float) -> dict[str, Any]:
    texts = {"base": f"base {line}", "adapter": f"adapter {line}"}
    return {
        "line": line,
        "messages": [{"role": "user", "content": f"question {line}"}],
        "question": f"question {line}",
        "reference_answer": f"expected {line}",
        "answers": {model: {"text": text, "tokens": 3, "cut": False, "error": None} for model, text in texts.items()},
        "scores": {"exact": {"base": base, "adapter": adapter}},
        "errors": {},
    }


ROWS = [result_row(line, line % 2, line % 3 == 0) for line in range(1, 13)]
WORSE = [row["line"] for row in ROWS if row["scores"]["exact"]["adapter"] < row["scores"]["exact"]["base"]]
WRONG = [row["line"] for row in ROWS if row["scores"]["exact"] == {"base": 0, "adapter": 0}]


class TestRows:
    @pytest.fixture
    def rows_path(
        self,
        client: TestClient,
        succeeded: Job,
        heldout: str,
        sessions: Sessions,
        storage: LocalStorage,
        project: Project,
    ) -> str:
        evaluation_id = ask(client, succeeded, heldout)["id"]
        finish(sessions, storage, project, ROWS)
        return path(succeeded, evaluation_id, "rows")

    @pytest.mark.parametrize(
        ("query", "expected"), [("", [*range(1, 13)]), ("&filter=got_worse", WORSE), ("&filter=still_wrong", WRONG)]
    )
    def test_the_pages_together_have_every_row_with_the_verdict_once(
        self, client: TestClient, rows_path: str, query: str, expected: list[int]
    ) -> None:
        assert len(expected) > 2
        found: list[dict[str, Any]] = []
        has_more, after = True, ""
        while has_more:
            page = client.get(f"{rows_path}?limit=2{query}{after}").json()
            found += page["data"]
            has_more, after = page["has_more"], f"&after={page['last_id']}"
        assert [row["line"] for row in found] == expected
        for row in map(EvaluationRowBody.model_validate, found):
            stored = ROWS[row.line - 1]
            assert row.answers["adapter"].text == f"adapter {row.line}"
            assert (row.messages, row.scores) == (stored["messages"], stored["scores"])

    @pytest.mark.parametrize(
        ("query", "param"),
        [("filter=better", "filter"), ("after=x", "after"), ("after=-1", "after"), ("limit=0", "limit")],
    )
    def test_a_bad_parameter_is_named(self, client: TestClient, rows_path: str, query: str, param: str) -> None:
        assert param_of(client.get(f"{rows_path}?{query}")) == param

    def test_an_unfinished_evaluation_has_none(self, client: TestClient, succeeded: Job, heldout: str) -> None:
        answer = client.get(path(succeeded, ask(client, succeeded, heldout)["id"], "rows")).json()
        assert (answer["data"], answer["has_more"], answer["last_id"]) == ([], False, None)

    def test_rows_of_a_deleted_file_are_not_found(self, client: TestClient, rows_path: str) -> None:
        file_id = client.get(rows_path.removesuffix("/rows")).json()["results_file"]
        assert client.delete(f"/v1/files/{file_id}").status_code == 200
        assert client.get(rows_path).status_code == 404

    def test_the_job_and_its_evaluation_have_the_same_headline(self, client: TestClient, rows_path: str) -> None:
        job_path, _, rest = rows_path.partition("/evaluations/")
        evaluation = client.get(f"{job_path}/evaluations/{rest.removesuffix('/rows')}").json()
        EvaluationBody.model_validate(evaluation)
        job = client.get(job_path).json()
        JobBody.model_validate(job)
        assert job["evaluation"]["headline"] == evaluation["headline"]
        assert evaluation["headline"]["adapter"]["rows"] > 0


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
