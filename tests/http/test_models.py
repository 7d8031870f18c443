from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.schemas.models import ModelBody
from app.db.base_models import models
from app.db.engine import Sessions, transaction
from app.db.tables import Job
from tests.factories import make_base_model


class TestUnknownModel:
    @pytest.mark.parametrize(
        ("name", "has_remedy"),
        [("gpt-4o-mini-2024-07-18", True), ("o3-mini", True), ("Qwen9", False), ("gpt-4 x", False)],
    )
    def test_the_name_of_an_openai_model_has_a_remedy(
        self, client: TestClient, base_model: str, training_file: str, name: str, has_remedy: bool
    ) -> None:
        messages = [{"role": "user", "content": "Hello"}]
        for answer in (
            client.post("/v1/fine_tuning/jobs", json={"model": name, "training_file": training_file}),
            client.post("/v1/fine_tuning/jobs/plan", json={"model": name, "training_file": training_file}),
            client.post("/v1/chat/completions", json={"model": name, "messages": messages}),
            client.get(f"/v1/models/{name}"),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert (f"`tunery models alias {name} BASE`" in error["message"]) == has_remedy


class TestList:
    def test_base_models_have_lora_limits(self, client: TestClient, base_model: str) -> None:
        body = client.get("/v1/models").json()
        assert body["object"] == "list"
        (model,) = body["data"]
        ModelBody.model_validate(model)
        assert model["id"] == base_model
        assert model["fine_tunable"] is True
        assert model["max_context_length"] == 512
        assert model["lora_limits"]["max_r"] == 32
        assert "q_proj" in model["lora_limits"]["target_modules"]

    def test_a_base_model_has_its_source_and_experts(
        self, client: TestClient, sessions: Sessions, tmp_path: Path
    ) -> None:
        with transaction(sessions) as session:
            make_base_model(session, tmp_path / "plain", name="plain")
            entry = make_base_model(session, tmp_path / "m", name="moe")
            found = {"source": "a/b", "revision": "v1", "experts": {"model.layers.0.mlp.experts.down_proj": (4, 8, 8)}}
            models.register(session, "moe", tmp_path / "m", {}, "0" * 64, entry.model_copy(update=found))
        body = client.get("/v1/models/moe").json()
        ModelBody.model_validate(body)
        assert (body["source"], body["revision"]) == ("a/b", "v1")
        assert body["lora_limits"]["target_parameters"] == ["mlp.experts.down_proj"]
        assert body in client.get("/v1/models").json()["data"]
        plain = client.get("/v1/models/plain").json()
        assert {"source", "revision"} & plain.keys() == set()
        assert "target_parameters" not in plain["lora_limits"]

    def test_trained_models_are_listed(self, client: TestClient, succeeded: Job) -> None:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names[0] == "tiny"
        assert succeeded.fine_tuned_model in names
        assert sum(":ckpt-step-" in name for name in names) == 2


class TestGet:
    def test_a_trained_model_has_its_base_and_job(self, client: TestClient, succeeded: Job) -> None:
        body = client.get(f"/v1/models/{succeeded.fine_tuned_model}").json()
        ModelBody.model_validate(body)
        assert (body["base_model"], body["fine_tuning_job_id"]) == ("tiny", succeeded.id)

    def test_without_a_name_is_an_error_that_names_the_list(self, client: TestClient) -> None:
        for method in ("GET", "DELETE"):
            error = client.request(method, "/v1/models/").json()["error"]
            assert (error["code"], "/v1/models?" in error["message"]) == ("unknown_url", True)


class TestDelete:
    def test_a_deleted_model_is_not_found(self, client: TestClient, succeeded: Job) -> None:
        path = f"/v1/models/{succeeded.fine_tuned_model}"
        assert client.delete(path).json() == {"id": succeeded.fine_tuned_model, "object": "model", "deleted": True}
        assert client.get(path).status_code == 404
        assert client.delete(path).status_code == 404
        assert str(succeeded.fine_tuned_model) not in client.get("/v1/models").text

    def test_a_base_model_is_not_deleted(self, client: TestClient, base_model: str) -> None:
        answer = client.delete(f"/v1/models/{base_model}")
        assert answer.status_code == 403
        assert client.get(f"/v1/models/{base_model}").status_code == 200
