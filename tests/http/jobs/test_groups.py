"""Groups: the jobs of a create body and its variants, by one request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobGroup
from app.db.engine import Sessions, transaction
from app.db.tables import ApiKey, AuditEntry, Project
from app.domain.jobs.create_job import MAX_VARIANTS
from tests.api_objects import error_of
from tests.http.conftest import Upload
from tests.sentences import Reviewed

JOBS = "/v1/fine_tuning/jobs"
GROUPS = f"{JOBS}/groups"
OF_EACH = ("id", "created_at", "group", "request", "deliveries", "compatibility")
Create = Callable[..., Response]


@pytest.fixture
def job(base_model: str, training_file: str) -> dict[str, Any]:
    return {
        "model": base_model,
        "training_file": training_file,
        "suffix": "demo",
        "metadata": {"team": "a"},
        "lora": {"rank": 4},
        "hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 2},
    }


@pytest.fixture
def create(client: TestClient, job: dict[str, Any]) -> Create:
    def send(*variants: Any, key: str | None = None, of: dict[str, Any] | None = None) -> Response:
        headers = {"Idempotency-Key": key} if key else {}
        return client.post(GROUPS, json={"job": of or job, "variants": variants}, headers=headers)

    return send


def created(answer: Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    group = JobGroup.model_validate(answer.json())
    assert all(job.group == group.id for job in group.jobs)
    return list(answer.json()["jobs"])


def listed(client: TestClient, **params: Any) -> list[str]:
    return [job["id"] for job in client.get(JOBS, params=params).json()["data"]]


class TestCreateGroup:
    def test_the_jobs_are_those_that_creates_with_the_merged_bodies_make(
        self, client: TestClient, create: Create, job: dict[str, Any]
    ) -> None:
        variants = [
            ({}, {}),
            ({"lora": {"r": 8}}, {"lora": {"rank": 8}}),
            ({"hyperparameters": {"learning_rate": 1e-4}}, {"hyperparameters": {"n_epochs": 2, "learning_rate": 1e-4}}),
            (
                {"metadata": {"try": "2"}, "suffix": None, "priority": 3},
                {"metadata": {"team": "a", "try": "2"}, "suffix": None, "priority": 3},
            ),
            ({"quantization": None, "seed": 9}, {"quantization": None, "seed": 9}),
        ]
        jobs = created(create(*(variant for variant, _ in variants)))
        seed = jobs[0]["seed"]
        for made, (_, changes) in zip(jobs, variants, strict=True):
            alone = client.post(JOBS, json=job | {"seed": seed} | changes).json()
            assert {name: value for name, value in made.items() if name not in OF_EACH} == {
                name: value for name, value in alone.items() if name not in OF_EACH
            }
            assert (alone["group"], made["cloned_from"]) == (None, None)
        again = client.post(JOBS, json=jobs[1]["request"]).json()
        assert (again["lora"], again["method"], again["seed"]) == (jobs[1]["lora"], jobs[1]["method"], seed)

    def test_a_list_has_the_jobs_of_a_group_and_not_their_clones(self, client: TestClient, create: Create) -> None:
        jobs = created(create({}, {"lora": {"r": 8}}))
        other = created(create({}))
        assert client.post(f"{JOBS}/{jobs[0]['id']}/clone").json()["group"] is None
        assert listed(client, group=jobs[0]["group"]) == [job["id"] for job in reversed(jobs)]
        assert listed(client, group=other[0]["group"]) == [other[0]["id"]]
        assert listed(client, group="ftgroup-unknown") == []
        assert client.get(f"{JOBS}/{jobs[1]['id']}").json()["group"] == jobs[0]["group"]

    def test_variants_use_the_held_out_rows_of_the_training_file(
        self, client: TestClient, job: dict[str, Any], upload: Upload, create: Create
    ) -> None:
        rows = "".join(f"question {number},answer {number}\n" for number in range(40))
        table = upload(f"text,label\n{rows}".encode(), filename="t.csv", columns="text,label", held_out_percent="20")
        file = table.json()
        jobs = created(create({}, {"validation_file": None}, of=job | {"training_file": file["id"]}))
        assert [made["validation_file"] for made in jobs] == [file["held_out_file_id"], None]
        assert jobs[0]["evaluation"]["file"] == file["held_out_file_id"]

    def test_a_repeated_request_creates_nothing(self, client: TestClient, create: Create) -> None:
        first, again = (create({}, {"lora": {"r": 8}}, key="k") for _ in range(2))
        assert again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        assert error_of(create({}, key="k"))["code"] == "idempotency_key_reused"
        assert len(listed(client)) == 2

    def test_the_audit_log_has_one_line_with_every_job(self, create: Create, sessions: Sessions) -> None:
        jobs = created(create({}, {"lora": {"r": 8}}))
        with transaction(sessions) as session:
            query = select(AuditEntry).where(AuditEntry.action == "fine_tuning.jobs.groups.create")
            entry = session.scalars(query).one()
            assert entry.object_ids == [job["id"] for job in jobs]


class TestRefusedGroup:
    def test_a_refusal_names_the_problems_of_the_job_and_of_every_variant(
        self, client: TestClient, create: Create, job: dict[str, Any], reviewed: Reviewed
    ) -> None:
        answer = create({}, {"sufix": "x"}, {"lora": {"rank": 0}, "hyperparameters": {"n_epochs": 99}}, {"model": "no"})
        error = error_of(answer)
        assert (error["param"], error["code"]) == ("variants[1].sufix", "unknown_parameter")
        for path in ("variants[2].lora.rank", "variants[2].hyperparameters.n_epochs", "variants[3]"):
            assert path in error["message"]
        assert "variants[0]" not in error["message"]
        reviewed(error["message"])
        error = error_of(create({}, {"lora": {"rank": 0}}, of=job | {"seed": -1, "hyperparameters": {"n_epochs": 99}}))
        assert error["param"] == "job.seed"
        assert "job.hyperparameters.n_epochs" in error["message"]
        assert "variants[1].lora.rank" in error["message"]
        assert "variants[0]" not in error["message"]
        assert listed(client) == []

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({"variants": []}, "variants", "invalid_value"),
            ({"variants": [{}] * (MAX_VARIANTS + 1)}, "variants", "invalid_value"),
            ({"variants": {}}, "variants", "invalid_type"),
            ({"variants": [{}, 3]}, "variants[1]", "invalid_type"),
            ({"job": None}, "job", "invalid_type"),
            ({"job": {}}, "job.model", "missing_required_parameter"),
            ({"jobs": {}}, "jobs", "unknown_parameter"),
            ({"variants": [{"training_file": None}]}, "variants[0].training_file", "invalid_type"),
            ({"variants": [{"method": 3}]}, "variants[0].method", "invalid_type"),
            ({"variants": [{}, {"lora": {"r": 4}, "suffix": "other"}]}, "variants[1]", "conflicting_parameters"),
        ],
        ids=["none", "nine", "no list", "no object", "null", "empty job", "typo", "null file", "no method", "equal"],
    )
    def test_a_wrong_group_creates_nothing(
        self, client: TestClient, job: dict[str, Any], body: dict[str, Any], param: str, code: str
    ) -> None:
        error = error_of(client.post(GROUPS, json={"job": job, "variants": [{}]} | body))
        assert (error["param"], error["code"]) == (param, code)
        assert listed(client) == []

    def test_a_missing_model_or_right_alone_has_its_own_status(self, client: TestClient, create: Create) -> None:
        assert error_of(create({}, {"model": "no"}), 404)["param"] == "variants[1].model"
        assert error_of(create({"urgent": True}), 403)["param"] == "variants[0].urgent"
        assert listed(client) == []


class TestLimitsOfGroups:
    def test_every_job_counts_as_a_queued_one(self, client: TestClient, create: Create, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            session.execute(update(Project).values(max_queued_jobs=2))
        variants = [{"lora": {"r": rank}} for rank in (1, 2, 3)]
        assert error_of(create(*variants), 429)["param"] == "max_queued_jobs"
        assert listed(client) == []
        created(create(*variants[:2]))

    def test_every_job_counts_as_a_request(self, create: Create, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            session.execute(update(Project).values(max_requests_per_second=2))
        created(create(*({"lora": {"r": rank}} for rank in range(1, 9))))
        refused = create({})
        assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after-ms"]) > 2_000  # half a second for each of the six

    def test_a_key_needs_the_scope_of_a_create(self, client: TestClient, create: Create, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            session.execute(update(ApiKey).values(scopes=["jobs:read"]))
        assert error_of(create({}), 403)["code"] == "insufficient_permissions"


REFUSED = ((400, True), (403, True), (404, True))
KEYS = st.sampled_from(
    ["model", "training_file", "method", "type", "supervised", "dpo", "hyperparameters", "lora", "rank", "n_epochs",
     "quantization", "bits", "seed", "suffix", "metadata", "evaluation", "trainingType", "deliver_to", "x"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


class TestAnyGroup:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changed=JSON, variants=JSON | st.lists(JSON, max_size=3))
    def test_any_json_is_created_whole_or_refused(
        self, client: TestClient, job: dict[str, Any], changed: Any, variants: Any
    ) -> None:
        whole = job | changed if isinstance(changed, dict) else changed
        answer = client.post(GROUPS, json={"job": whole, "variants": variants})
        if answer.status_code == 200:
            jobs = answer.json()["jobs"]
            assert len(listed(client, group=jobs[0]["group"])) == len(jobs) == len(variants)
        else:
            assert (answer.status_code, bool(error_of(answer, answer.status_code)["code"])) in REFUSED
