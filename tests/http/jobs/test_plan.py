from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.api.schemas.plans import PlanBody
from app.db.engine import Sessions, transaction
from app.db.scheduling import measurements, workers
from app.db.tables import BaseModelRow, Job
from app.domain.planning.execution_plan import Measurement
from app.services.jobs import plan
from app.services.jobs.plan import UNCOUNTED
from tests.api_objects import param_of
from tests.factories import chat_lines, make_project, make_target
from tests.http.conftest import Upload
from tests.tiny import make_tiny_pairs, panic_at_many_a

pytestmark = pytest.mark.usefixtures("base_model")
JOBS = "/v1/fine_tuning/jobs"
PLAN = f"{JOBS}/plan"
ABOUT = {"device": "NVIDIA L4", "kind": "cuda", "memory_bytes": 24 << 30, "cpus": 8}


@pytest.fixture
def worker(sessions: Sessions) -> None:
    have_worker(sessions, "gpu0@a#1", ABOUT)


def have_worker(sessions: Sessions, name: str, about: dict[str, Any]) -> None:
    with transaction(sessions) as session:
        workers.heartbeat(session, name, "gpu", "host", 1, about)


def lines(*examples: tuple[str, str, int]) -> bytes:
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said, "weight": weight}]}
        ).encode()
        + b"\n"
        for asked, said, weight in examples
    )


def test_a_batch_by_auto_depends_on_the_gpus_of_living_workers(
    client: TestClient, upload: Upload, sessions: Sessions
) -> None:
    file = upload(lines(*[("a", "b", 1)] * 4000)).json()["id"]

    def batch_size() -> int:
        job = client.post(JOBS, json={"model": "tiny", "training_file": file}).json()
        return int(job["hyperparameters"]["batch_size"])

    assert batch_size() == 8
    have_worker(sessions, "gpu0@a#1", ABOUT | {"kind": "cpu"})
    assert batch_size() == 8
    have_worker(sessions, "gpu0@b#1", ABOUT)
    assert batch_size() == 12  # 3 epochs of 4,000 rows in 1,000 steps


LATER = ("no_validation_file", "unread_enable_thinking")  # the job's validation adds the second one


@pytest.mark.usefixtures("worker")
class TestPlan:
    def test_a_plan_creates_nothing(self, client: TestClient, training_file: str, sessions: Sessions) -> None:
        answer = client.post(PLAN, json={"model": "tiny", "training_file": training_file, "seed": 1})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        PlanBody.model_validate(body)
        assert (body["examples"], body["trained_examples"]) == (12, 12)
        assert body["trained_tokens"] == body["tokens_per_epoch"] * body["hyperparameters"]["n_epochs"]
        assert body["total_steps"] == 12 * 8
        assert body["verdict"] == "fits"
        (device,) = body["devices"]
        assert (device["name"], device["workers"], device["basis"]) == ("NVIDIA L4", 1, "formula")
        assert body["message"] == device["message"]
        assert device["mode"]["row_tokens"] == 8192
        with transaction(sessions) as session:
            assert session.query(Job).count() == 0

    def test_a_plan_has_the_warnings_of_its_job(self, client: TestClient, training_file: str, upload: Upload) -> None:
        copy, other = (upload(content).json()["id"] for content in (None, chat_lines(11)))
        for body, codes in (
            ({}, ["no_validation_file"]),
            ({"validation_file": other}, []),
            ({"validation_file": other, "chat_template_kwargs": {"enable_thinking": True}}, ["unread_enable_thinking"]),
            ({"validation_file": training_file}, ["same_file"]),
            ({"validation_file": copy, "trainingType": "Standard"}, ["without_effect", "same_file"]),
        ):
            asked = {"model": "tiny", "training_file": training_file} | body
            planned = client.post(PLAN, json=asked).json()["warnings"]
            assert [warning["code"] for warning in planned] == codes
            created = client.post(JOBS, json=asked).json()
            assert created["warnings"] == [each for each in planned if each["code"] not in LATER]
            events = client.get(f"{JOBS}/{created['id']}/events").json()["data"]
            texts = [event["message"] for event in reversed(events) if event["level"] == "warn"]
            assert texts == [each["message"] for each in created["warnings"]]

    def test_a_plan_has_the_cost_of_the_evaluation_after_the_training(
        self, client: TestClient, training_file: str, upload: Upload
    ) -> None:
        heldout = upload(chat_lines(11)).json()["id"]
        asked = {"model": "tiny", "training_file": training_file}

        def planned(**evaluation: Any) -> Any:
            body = asked | {"validation_file": heldout, "evaluation": {"graders": []} | evaluation}
            return client.post(PLAN, json=body).json()["evaluation"]

        assert client.post(PLAN, json=asked).json()["evaluation"] is None
        whole, part = planned(file=heldout, max_new_tokens=64), planned(file=heldout, max_rows=5, max_new_tokens=64)
        assert (whole["rows"], whole["max_answer_tokens"], whole["basis"]) == (11, 2 * 11 * 64, "training_speed")
        assert (part["rows"], part["max_answer_tokens"]) == (5, 2 * 5 * 64)
        assert whole["estimated_seconds"] > part["estimated_seconds"] > 0
        assert whole["prompt_tokens"] > part["prompt_tokens"] > 0
        assert set(planned(file=training_file).values()) == {None}  # its rows are counted by a worker

    @pytest.mark.parametrize("adapted", [False, True])
    def test_experts_that_stay_frozen_are_named(
        self, client: TestClient, training_file: str, sessions: Sessions, adapted: bool
    ) -> None:
        with transaction(sessions) as session:
            row = session.get_one(BaseModelRow, "tiny")
            row.entry = row.entry | {"expert_parameters": 4096}
        asked = {"model": "tiny", "training_file": training_file, "lora": {"experts": adapted}}
        planned, created = client.post(PLAN, json=asked).json(), client.post(JOBS, json=asked).json()
        assert planned["lora"]["experts"] is created["lora"]["experts"] is adapted
        codes = [] if adapted else ["experts_frozen"]
        assert [warning["code"] for warning in created["warnings"]] == codes
        assert [warning["code"] for warning in planned["warnings"]] == [*codes, "no_validation_file"]

    def test_a_plan_of_an_urgent_job_needs_the_permission(self, client: TestClient, training_file: str) -> None:
        asked = {"model": "tiny", "training_file": training_file, "urgent": True}
        refused = client.post(PLAN, json=asked)
        assert (refused.status_code, refused.json()) == (403, client.post(JOBS, json=asked).json())

    def test_a_large_base_fits_no_device(self, client: TestClient, training_file: str, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            row = session.get_one(BaseModelRow, "tiny")
            row.entry = row.entry | {"parameters": 400 * 10**9, "linear_parameters": 400 * 10**9}
        body = client.post(PLAN, json={"model": "tiny", "training_file": training_file}).json()
        assert (body["verdict"], body["devices"][0]["fits"]) == ("no_device_fits", False)
        assert body["message"] == body["devices"][0]["message"]
        assert "context_length" not in body["message"]

    @pytest.mark.parametrize(
        "activation_bytes", [{}, {"nothing": 4000.0, "elementwise": 2000.0}], ids=["not", "counted"]
    )
    def test_uncounted_layers_are_mentioned(
        self, client: TestClient, training_file: str, sessions: Sessions, activation_bytes: dict[str, float]
    ) -> None:
        ask = {"model": "tiny", "training_file": training_file, "seed": 1}
        llama = client.post(PLAN, json=ask).json()
        with transaction(sessions) as session:
            row = session.get_one(BaseModelRow, "tiny")
            row.entry = row.entry | {"architecture": "Gemma3ForCausalLM", "activation_bytes": activation_bytes}
        gemma = client.post(PLAN, json=ask).json()
        assert UNCOUNTED not in llama["message"]
        assert (UNCOUNTED in gemma["message"]) == (not activation_bytes)
        assert (gemma["devices"] == llama["devices"]) == (not activation_bytes)

    def test_an_entry_from_before_there_were_plans_is_completed_from_its_directory(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        ask = {"model": "tiny", "training_file": training_file, "seed": 1}
        whole = client.post(PLAN, json=ask).json()
        new = ("decoder_layers", "attention_heads", "query_size", "key_size", "intermediate_size", "linear_parameters")
        with transaction(sessions) as session:
            row = session.get_one(BaseModelRow, "tiny")
            row.entry = {key: value for key, value in row.entry.items() if key not in new}
        assert client.post(PLAN, json=ask).json() == whole

    def test_a_file_that_takes_too_long_is_refused(
        self, client: TestClient, training_file: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "DEADLINE_SECONDS", 0.0)
        answer = client.post(PLAN, json={"model": "tiny", "training_file": training_file})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "file_too_large_to_plan"

    def test_a_text_at_which_the_tokenizer_fails_is_named_with_its_line(
        self, client: TestClient, upload: Upload, sessions: Sessions
    ) -> None:
        file = upload(lines(*[("a", "b", 1)] * 10, ("a" * 300 + "!", "b", 1))).json()["id"]
        with transaction(sessions) as session:
            panic_at_many_a(Path(session.get_one(BaseModelRow, "tiny").directory))
        answer = client.post(PLAN, json={"model": "tiny", "training_file": file})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_training_file")
        assert "Line 11: " in answer.json()["error"]["message"]

    def test_a_template_without_an_end_is_a_400_that_names_the_model(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            directory = Path(session.get_one(BaseModelRow, "tiny").directory)
        (directory / "chat_template.jinja").write_text("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3)
        answers = [
            client.post(PLAN, json={"model": "tiny", "training_file": training_file}),
            client.post(f"/v1/files/{training_file}/validate", params={"model": "tiny"}),
        ]
        assert [(each.status_code, each.json()["error"]["param"]) for each in answers] == [(400, "model")] * 2

    @pytest.mark.parametrize(
        "content",
        [
            lines(*[("a", "b", 1)] * 10) + b'{"messages": []}\n',
            lines(*[("a", "b", 1)] * 9),
            lines(*[("a", "b", 0)] * 10),
        ],
        ids=["bad line", "too few examples", "nothing to learn"],
    )
    def test_an_invalid_training_file_is_refused(self, client: TestClient, upload: Upload, content: bytes) -> None:
        file = upload(content).json()["id"]
        error = client.post(PLAN, json={"model": "tiny", "training_file": file}).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_training_file", "training_file")

    def test_preference_pairs_are_counted(self, client: TestClient, upload: Upload, tmp_path: Path) -> None:
        file = upload(make_tiny_pairs(tmp_path / "pairs.jsonl", 12).read_bytes()).json()["id"]
        ask = {"model": "tiny", "training_file": file, "method": {"type": "dpo"}, "seed": 1}
        answer = client.post(PLAN, json=ask)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["method"], answer.json()["trained_examples"]) == ("dpo", 12)

    def test_a_validation_file_takes_its_time_at_each_validation(
        self, client: TestClient, training_file: str, upload: Upload, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learned = Measurement(
            recompute="nothing", cache_weights=True, loaded_ratio=1.0, working_ratio=1.0, flops=1e6, other_seconds=0.0
        )
        monkeypatch.setattr(measurements, "similar", lambda *_: [learned])
        file = upload(lines(*[("question", "answer", 1)] * 50)).json()["id"]

        def seconds(hyperparameters: dict[str, int], **more: str) -> float:
            hyperparameters = {"n_epochs": 2, "batch_size": 1} | hyperparameters
            ask = {
                "model": "tiny",
                "training_file": training_file,
                "seed": 1,
                "hyperparameters": hyperparameters,
            } | more
            return float(client.post(PLAN, json=ask).json()["devices"][0]["seconds"])

        alone, twice = seconds({}), seconds({}, validation_file=file)
        four_times = seconds({"eval_steps": 6}, validation_file=file)
        assert twice > alone
        assert four_times - alone == pytest.approx(2 * (twice - alone), rel=0.01)

    def test_a_validation_file_that_no_job_would_take_is_refused(
        self, client: TestClient, training_file: str, upload: Upload
    ) -> None:
        bad = upload(lines(("a", "b", 1)) + b'{"messages": []}\n').json()["id"]
        answer = client.post(PLAN, json={"model": "tiny", "training_file": training_file, "validation_file": bad})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("validation_file", "invalid_value")
        assert error["message"].startswith("Line 2: ")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"lora": {"r": 0}}, "lora.r"),
            ({"deliver_to": ["none"]}, "deliver_to"),
            ({"deliver_to": ["foreign"]}, "deliver_to"),
            ({"evaluation": {"file": "file-none"}}, "evaluation.file"),
            ({"evaluation": {"reference": {"model": "m", "endpoint": "none"}}}, "evaluation.reference.endpoint"),
        ],
    )
    def test_what_create_refuses_is_refused(
        self, client: TestClient, sessions: Sessions, training_file: str, body: Any, param: str
    ) -> None:
        with transaction(sessions) as session:
            make_target(session, make_project(session, "others").id, "foreign")
        if "evaluation" in body:
            body = {"evaluation": {"file": training_file} | body["evaluation"]}
        body = {"model": "tiny", "training_file": training_file} | body
        planned, created = (client.post(path, json=body) for path in (PLAN, JOBS))
        assert (planned.status_code, planned.json()["error"]["param"]) == (400, param)
        assert planned.json() == created.json()


SHARED = ABOUT | {"slots_per_gpu": 2, "gpu_uuids": ["GPU-1"], "gpus_per_job": 1}


class TestSharedGpu:
    """The claim reserves the budget of a slot, or the whole GPU for a job that does not fit one."""

    @pytest.fixture(autouse=True)
    def _workers(self, sessions: Sessions) -> None:
        for number in range(2):
            have_worker(sessions, f"gpu{number}@a#1", SHARED)

    def test_a_job_that_fits_a_slot_is_planned_within_its_budget(self, client: TestClient, training_file: str) -> None:
        body = client.post(PLAN, json={"model": "tiny", "training_file": training_file}).json()
        (device,) = body["devices"]
        assert (device["memory_bytes"], device["workers"]) == (int(0.98 * (24 << 30)) // 2, 2)

    def test_a_larger_job_is_planned_for_the_whole_gpu(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            row = session.get_one(BaseModelRow, "tiny")
            row.entry = row.entry | {"parameters": 30 * 10**9, "linear_parameters": 30 * 10**9}
        (device,) = client.post(PLAN, json={"model": "tiny", "training_file": training_file}).json()["devices"]
        assert (device["memory_bytes"], device["fits"]) == (24 << 30, True)


class TestWorkersThatMayNotTakeTheJob:
    def test_workers_without_the_labels_are_no_devices(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        have_worker(sessions, "gpu0@a#1", ABOUT)
        have_worker(sessions, "gpu0@b#1", ABOUT | {"device": "NVIDIA H100", "labels": ["team=a"]})
        ask = {"model": "tiny", "training_file": training_file, "worker_labels": ["team=a"]}
        body = client.post(PLAN, json=ask).json()
        assert [each["name"] for each in body["devices"]] == ["NVIDIA H100"]
        body = client.post(PLAN, json=ask | {"worker_labels": ["team=b"]}).json()
        assert (body["verdict"], body["devices"]) == ("no_worker", [])

    def test_workers_without_the_model_are_no_devices(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        have_worker(sessions, "gpu0@a#1", ABOUT | {"models": ["another"]})
        body = client.post(PLAN, json={"model": "tiny", "training_file": training_file}).json()
        assert (body["verdict"], body["devices"]) == ("no_worker", [])


class TestPatterns:
    @pytest.mark.parametrize("param", ["rank_pattern", "alpha_pattern"])
    def test_a_slow_pattern_is_refused_in_time(self, client: TestClient, training_file: str, param: str) -> None:
        keys = {r"(\w|.|[^!])" * 20 + f"!|{number}": 4 for number in range(64)}
        began = time.process_time()
        answer = client.post(PLAN, json={"model": "tiny", "training_file": training_file, "lora": {param: keys}})
        assert time.process_time() - began < 20  # they would take for ever
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"lora.{param}")

    def test_patterns_are_shown_as_requested(self, client: TestClient, training_file: str) -> None:
        lora = {"rank_pattern": {r"layers\.1\..*": 4}, "alpha_pattern": {"q_proj": 3.0}}
        asked = {"model": "tiny", "training_file": training_file, "lora": lora}
        planned, created = client.post(PLAN, json=asked), client.post(JOBS, json=asked)
        cloned = client.post(f"{JOBS}/{created.json()['id']}/clone", json={})
        for answer in (planned, created, cloned):
            assert answer.status_code == 200, answer.text
            assert answer.json()["lora"] | lora == answer.json()["lora"]
            assert "layer_patterns" not in answer.text

    def test_patterns_are_matched_with_the_files_of_an_old_entry(
        self, client: TestClient, training_file: str, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            row = session.scalars(select(BaseModelRow)).one()
            row.entry = row.entry | {"layers": {}, "decoder_layers": 0}
        asked = {"model": "tiny", "training_file": training_file, "lora": {"rank_pattern": {"no_such": 4}}}
        assert param_of(client.post(PLAN, json=asked)) == "lora.rank_pattern"
