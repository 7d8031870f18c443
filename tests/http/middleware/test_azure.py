"""Azure's own client and its older scripts: other names for the same calls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.domain.error_text.json_text import as_json
from tests.http.conftest import Upload


@pytest.fixture
def bare(app: FastAPI) -> Iterator[TestClient]:
    """Without a key of its own."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


class TestAzuresNames:
    @pytest.mark.parametrize("prefix", ["/openai", "/openai/v1", "/v1"])
    def test_azure_paths_and_its_key_header_reach_the_same_call(
        self, bare: TestClient, api_key: str, prefix: str
    ) -> None:
        answer = bare.get(f"{prefix}/files?api-version=2024-10-21", headers={"api-key": api_key})
        assert answer.status_code == 200
        assert answer.json()["object"] == "list"

    def test_do_not_open_what_the_key_does_not(self, bare: TestClient) -> None:
        for headers in ({}, {"api-key": ""}, {"api-key": "wrong"}, {"api-key": "Bearer wrong"}):
            answer = bare.get("/openai/files", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"

    def test_come_second_to_an_authorization_header(self, bare: TestClient, api_key: str) -> None:
        headers = {"api-key": api_key, "Authorization": "Bearer wrong"}
        assert bare.get("/openai/files", headers=headers).status_code == 401

    def test_reach_ids_and_the_routes_beside_v1_stay_where_they_are(
        self, bare: TestClient, api_key: str, base_model: str
    ) -> None:
        headers = {"api-key": api_key}
        assert bare.get(f"/openai/models/{base_model}", headers=headers).json()["id"] == base_model
        assert bare.get("/openai/fine_tuning/jobs/ftjob-x", headers=headers).status_code == 404
        assert bare.get("/openai/healthz", headers=headers).status_code == 404


class TestATrainingType:
    @pytest.mark.parametrize("kind", ["Standard", "GlobalStandard", "globalStandard", "developerTier", 1])
    def test_a_training_type_of_azure_is_accepted_with_a_warning_event(
        self, client: TestClient, base_model: str, training_file: str, kind: str | int
    ) -> None:
        body = {"model": base_model, "training_file": training_file, "trainingType": kind}
        job = client.post("/v1/fine_tuning/jobs", json=body).json()
        events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
        assert [event["level"] for event in events] == ["warn", "info"]
        assert f"trainingType {as_json(kind)} was ignored" in events[0]["message"]

    @pytest.mark.parametrize("kind", ["hourly", "", "1", 0, 2, 1.0, True, {}])
    def test_an_unknown_training_type_is_refused(
        self, client: TestClient, base_model: str, upload: Upload, kind: object
    ) -> None:
        body = {"model": base_model, "training_file": upload().json()["id"], "trainingType": kind}
        answer = client.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "trainingType"
