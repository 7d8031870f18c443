from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from httpx2 import Response
from sqlalchemy import func, update
from starlette.testclient import TestClient

from app.api.schemas.jobs import JobBody
from app.db.engine import Sessions, transaction
from app.db.tables import BaseModelRow, File, Job
from tests.api_objects import error_of
from tests.factories import make_project
from tests.http.conftest import Upload
from tests.stack import as_redis_py
from tests.tiny import CONFIG

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def create(client: TestClient, training_file: str) -> Any:
    def send(**body: Any) -> Response:
        return client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": training_file} | body)

    return send


def jobs_in(sessions: Sessions) -> int:
    with transaction(sessions) as session:
        return session.query(Job).count()


class TestCreate:
    def test_a_new_job_has_resolved_parameters(self, create: Any, training_file: str) -> None:
        answer = create()
        assert answer.status_code == 200
        body = answer.json()
        JobBody.model_validate(body)
        assert body["status"] == "validating_files"
        assert body["training_file"] == training_file
        assert body["hyperparameters"] == {"n_epochs": 8, "batch_size": 1, "learning_rate_multiplier": 1.0}
        assert body["method"]["supervised"]["hyperparameters"]["context_length"] == CONFIG["max_position_embeddings"]
        assert body["lora"]["r"] == 16
        assert body["lora"]["alpha"] == 32
        assert "q_proj" in body["lora"]["target_modules"]
        assert body["quantization"] == {"bits": 4, "type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
        assert isinstance(body["seed"], int)
        assert body["result_files"] == []
        empty = ("error", "fine_tuned_model", "finished_at", "adapter", "progress", "metadata", "estimated_finish")
        assert {body[name] for name in (*empty, "chat_template_kwargs")} == {None}
        assert body["integrations"] == []

    def test_every_field_is_stored_and_shown(self, create: Any, upload: Upload) -> None:
        validation_file = upload().json()["id"]
        hyperparameters = {"n_epochs": 2, "batch_size": 4, "learning_rate": 0.001, "packing": False, "lora_r": 8}
        watched = {"eval_steps": 5, "early_stopping": {"patience": 2, "threshold": 0.01}}
        body = create(
            validation_file=validation_file,
            suffix="demo",
            seed=7,
            metadata={"team": "search", "empty": ""},
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters | watched}},
            chat_template_kwargs={"enable_thinking": False, "reasoning_effort": None},
            sample_prompts=["What is red?"],
            lora={"alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
            quantization=None,
            integrations=[{"type": "mlflow", "mlflow": {"experiment": "e"}}],
        ).json()
        assert body["validation_file"] == validation_file
        assert (body["seed"], body["user_provided_suffix"]) == (7, "demo")
        assert body["metadata"] == {"team": "search", "empty": ""}
        assert body["integrations"] == [{"type": "mlflow", "mlflow": {"experiment": "e"}}]
        assert body["quantization"] is None
        assert body["lora"]["r"] == 8
        assert body["lora"]["target_modules"] == ["q_proj", "v_proj"]
        assert body["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": None}
        asked = body["method"]["supervised"]["hyperparameters"]
        assert asked | watched | {"learning_rate": 0.001, "promote_best": True} == asked
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert body["sample_prompts"] == ["What is red?"]

    @pytest.mark.parametrize(
        ("method", "asked"), [("dpo", {"beta": 0.2}), ("orpo", {"beta": 0.2}), ("kto", {"undesirable_weight": 1.5})]
    )
    def test_a_method_is_shown_in_openais_shape(
        self, create: Any, client: TestClient, method: str, asked: dict[str, float]
    ) -> None:
        body = create(method={"type": method, method: {"hyperparameters": asked | {"n_epochs": 2}}}).json()
        JobBody.model_validate(body)
        assert body["hyperparameters"] == {}
        assert body["method"].keys() == {"type", method}
        assert body["method"]["type"] == method
        hyperparameters = body["method"][method]["hyperparameters"]
        assert hyperparameters | asked | {"n_epochs": 2} == hyperparameters
        assert client.get(f"/v1/fine_tuning/jobs/{body['id']}").json()["method"] == body["method"]
        (listed,) = client.get("/v1/fine_tuning/jobs").json()["data"]
        assert (listed["method"], listed["hyperparameters"]) == (body["method"], {})

    def test_a_new_job_sends_a_hint(self, create: Any, redis_url: str) -> None:
        create()
        with redis.Redis.from_url(as_redis_py(redis_url)) as broker:
            _, message = broker.blpop(["tunery:cpu"], timeout=10)
        assert json.loads(message)["headers"]["task"] == "tunery.validate"


# tests/jobs/test_resolve.py has the other parameters.
REFUSED = [
    ({"model": ""}, "model"),
    ({"training_file": None}, "training_file"),
    ({"training_file": ["a"]}, "training_file"),
    ({"priority": 101}, "priority"),
    ({"urgent": "yes"}, "urgent"),
    ({"worker_labels": ["a b"]}, "worker_labels.0"),
    ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"reasoning_effort": "a b"}}, "chat_template_kwargs.reasoning_effort"),
    ({"chat_template_kwargs": {"documents": [{"text": "a" * 65_000}]}}, "chat_template_kwargs.documents"),
    ({"chat_template_kwargs": {"documents": [{"text": 1}]}}, "chat_template_kwargs.documents.0.text"),
    ({"integrations": [{"type": "clearml"}]}, "integrations.0.type"),
    ({"integrations": [{"type": "wandb"}]}, "integrations.0"),
    ({"integrations": [{"type": "wandb", "mlflow": {"experiment": "e"}}]}, "integrations.0"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "a/b"}}]}, "integrations.0.wandb.project"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p" * 129}}]}, "integrations.0.wandb.project"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p", "api_key": "k"}}]}, "integrations.0.wandb.api_key"),
    ({"integrations": [{"type": "mlflow", "mlflow": {"experiment": "e"}}] * 6}, "integrations"),
    ({"sample_prompts": ["a"] * 5}, "sample_prompts"),
    ({"sample_prompts": "a"}, "sample_prompts"),
    ({"sample_prompts": [1]}, "sample_prompts.0"),
    ({"sample_prompts": [""]}, "sample_prompts.0"),
    ({"sample_prompts": ["x" * 2001]}, "sample_prompts.0"),
    ({"lora": {"r": 33}}, "lora.r"),  # above the smallest target's dimension, which is 32 here
    ({"lora": {"r": 8, "rank": 9}}, "lora.rank"),
    ({"hyperparameters": {"early_stopping": True}}, "hyperparameters.early_stopping"),  # without a validation file
    ({"method": {"type": "supervised", "sft": {}}}, "method.sft"),
    ({"method": {"supervised": {"hyperparameters": [1]}}}, "method.supervised.hyperparameters"),
    ({"state": "succeeded"}, "state"),
]


class TestBadInput:
    def test_an_invalid_parameter_has_its_dotted_name(self, create: Any, sessions: Sessions) -> None:
        for body, param in REFUSED:
            assert error_of(create(**body))["param"] == param, body
        assert jobs_in(sessions) == 0

    def test_all_problems_are_reported_at_once(self, create: Any) -> None:
        body = {"suffix": "x" * 65, "sufix": "demo", "hyperparameters": {"n_epochs": 0}, "lora": {"r": 0}}
        error = error_of(create(**body, integrations=[{"type": "wandb"}]))
        for word in ("suffix", "sufix", "n_epochs", "lora.r", "wandb"):
            assert word in error["message"]

    def test_an_unknown_model_hides_no_problem_that_needs_no_model(self, create: Any) -> None:
        error = error_of(create(model="o4-mini-2025-04-16", method={"type": "reinforcement"}, lora={"rnak": 1}))
        assert (error["code"], error["param"]) == ("unsupported_value", "method.type")
        for word in ("reinforcement", "rnak", "o4-mini-2025-04-16"):
            assert word in error["message"]

    def test_a_hyperparameter_beside_the_model_is_refused(self, create: Any) -> None:
        for parameter in ("n_epochs", "lora_r", "load_in_4bit"):
            error = error_of(create(**{parameter: 1}))
            assert (error["code"], error["param"]) == ("unknown_parameter", parameter)

    def test_an_unknown_or_deleted_file_is_not_found(self, create: Any, client: TestClient, training_file: str) -> None:
        assert error_of(create(validation_file="file-none"), 404)["param"] == "validation_file"
        client.delete(f"/v1/files/{training_file}")
        assert error_of(create(), 404)["param"] == "training_file"

    @pytest.mark.parametrize(
        ("what", "param"), [("foreign", "validation_file"), ("expired", "validation_file"), ("private", "model")]
    )
    def test_what_the_project_may_not_use_is_not_found(
        self, create: Any, upload: Upload, sessions: Sessions, what: str, param: str
    ) -> None:
        validation_file = upload().json()["id"]
        assert create(validation_file=validation_file).status_code == 200
        with transaction(sessions) as session:
            other = make_project(session, "other").id
            of_file = update(File).where(File.id == validation_file)
            change = {
                "foreign": of_file.values(project_id=other),
                "expired": of_file.values(expires_at=func.clock_timestamp()),
                "private": update(BaseModelRow).values(project_id=other),
            }
            session.execute(change[what])
        assert error_of(create(validation_file=validation_file), 404)["param"] == param
