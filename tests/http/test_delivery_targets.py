"""Delivery targets over HTTP: create, change, list, delete; what is refused, and that no credential comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select
from starlette.testclient import TestClient

from app.db.deliveries.credentials import decrypt, encrypt
from app.db.engine import Sessions, transaction
from app.db.tables import DeliveryTarget
from app.settings import Settings
from tests.api_objects import param_of

KEY = Fernet.generate_key().decode()
PATH = "/v1/delivery_targets"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    changes = {"secret_keys": type(settings.secret_keys)(KEY), "delivery_directories": (str(tmp_path),)}
    return settings.model_copy(update=changes)


def vllm(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    destination = {"kind": "vllm", "urls": ["https://vllm.example.com"], "shared_path": f"{tmp_path}/adapters"}
    return {"name": "production", "destination": destination} | changes


class TestCreate:
    def test_it_returns_the_target_and_no_credential(
        self, client: TestClient, tmp_path: Path, sessions: Sessions
    ) -> None:
        body = vllm(tmp_path, credentials={"api_key": "very-secret"}, served_model="bot", default=True)
        created = client.post(PATH, json=body)
        assert created.status_code == 200, created.text
        target = created.json()
        assert (target["kind"], target["credentials"], target["default"]) == ("vllm", ["api_key"], True)
        listed = client.get(PATH).json()["data"]
        assert listed == [target] == [client.get(f"{PATH}/production").json()]
        assert "very-secret" not in created.text + client.get(PATH).text
        with transaction(sessions) as session:
            row = session.scalars(select(DeliveryTarget)).one()
            assert "very-secret" not in (row.credentials or "")
            assert decrypt([KEY], row.credentials or "") == {"api_key": "very-secret"}

    def test_vllm_needs_no_shared_path_and_sglang_does(self, client: TestClient) -> None:
        urls = ["https://engine.example.com"]
        created = client.post(PATH, json={"name": "plugin", "destination": {"kind": "vllm", "urls": urls}})
        assert created.json()["destination"]["shared_path"] is None
        body = {"name": "sglang", "destination": {"kind": "sglang", "urls": urls}}
        assert "shared_path" in param_of(client.post(PATH, json=body))

    def test_what_only_a_shared_path_uses_is_refused_without_it(self, client: TestClient) -> None:
        destination = {"kind": "vllm", "urls": ["https://x.example.com"], "engine_path": "/a", "base_name": "b"}
        message = client.post(PATH, json={"name": "plugin", "destination": destination}).json()["error"]["message"]
        assert all(f"destination.{name}: " in message for name in ("engine_path", "base_name"))

    def test_a_second_one_of_a_name_is_refused(self, client: TestClient, tmp_path: Path) -> None:
        assert client.post(PATH, json=vllm(tmp_path)).status_code == 200
        assert param_of(client.post(PATH, json=vllm(tmp_path))) == "name"

    def test_every_problem_is_named_at_once(self, client: TestClient) -> None:
        destination = {"kind": "vllm", "urls": ["http://10.0.0.5:8000"], "shared_path": "/etc"}
        body = {"name": "a b", "destination": destination, "credentials": {"token": "x"}}
        message = client.post(PATH, json=body).json()["error"]["message"]
        for part in ("name:", "TUNERY_DELIVERY_ALLOW_HTTP", "TUNERY_DELIVERY_ALLOWED_NETWORKS", "/etc", "token"):
            assert part in message

    @pytest.mark.parametrize(
        ("destination", "param", "named"),
        [
            ({"kind": "directory"}, "destination.path", "destination.path"),
            ({"kind": "vllm"}, "destination.urls", "destination.urls"),
            ({"kind": "directory", "path": "/a", "pth": "/a"}, "destination.pth", '"path"'),
            ({"kind": "dir"}, "destination", "kind must be one of"),
            ({}, "destination", "kind"),
        ],
    )
    def test_the_name_of_a_field_of_the_destination_is_that_of_the_body(
        self, client: TestClient, destination: dict[str, str], param: str, named: str
    ) -> None:
        answer = client.post(PATH, json={"name": "x", "destination": destination})
        assert (param_of(answer), named in answer.json()["error"]["message"]) == (param, True)

    @pytest.mark.parametrize("path", ["/", "/etc", "relative", "{allowed}/../elsewhere"])
    def test_a_directory_outside_of_the_allowed_ones_is_refused(
        self, client: TestClient, tmp_path: Path, path: str
    ) -> None:
        destination = {"kind": "directory", "path": path.format(allowed=tmp_path)}
        assert param_of(client.post(PATH, json={"name": "x", "destination": destination})).startswith("dest")

    @pytest.mark.parametrize(
        ("destination", "credentials"),
        [
            ({"kind": "s3", "bucket": "abc"}, {}),
            ({"kind": "s3", "bucket": "abc"}, {"access_key_id": "x"}),
            ({"kind": "huggingface", "repo_id": "me/adapters"}, {}),
        ],
    )
    def test_missing_credentials_are_refused(
        self, client: TestClient, destination: dict[str, str], credentials: dict[str, str]
    ) -> None:
        body = {"name": "x", "destination": destination, "credentials": credentials}
        assert param_of(client.post(PATH, json=body)).startswith("credentials")


class TestWithoutASecretKey:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"secret_keys": type(settings.secret_keys)("")})

    def test_credentials_are_refused_and_targets_without_them_are_not(self, client: TestClient, tmp_path: Path) -> None:
        assert param_of(client.post(PATH, json=vllm(tmp_path, credentials={"api_key": "x"}))) == "credentials"
        assert client.post(PATH, json=vllm(tmp_path)).status_code == 200


class TestALostKey:
    def test_lost_credentials_are_a_status_until_they_are_set_again(
        self, client: TestClient, tmp_path: Path, sessions: Sessions
    ) -> None:
        assert client.post(PATH, json=vllm(tmp_path, credentials={"api_key": "x"})).json()["status"] == "ready"
        with transaction(sessions) as session:
            row = session.scalars(select(DeliveryTarget)).one()
            row.credentials = encrypt([Fernet.generate_key().decode()], {"api_key": "x"})
        lost = client.get(f"{PATH}/production").json()
        assert client.get(PATH).json()["data"] == [lost]
        assert (lost["status"], lost["credentials"]) == ("credentials_lost", ["api_key"])
        assert lost["error"]
        changed = client.post(f"{PATH}/production", json={"credentials": {"api_key": "y"}}).json()
        assert (changed["status"], changed["error"]) == ("ready", None)


class TestChange:
    def test_absent_fields_keep_their_values(self, client: TestClient, tmp_path: Path) -> None:
        created = client.post(PATH, json=vllm(tmp_path, credentials={"api_key": "x"}, served_model="bot")).json()
        changed = client.post(f"{PATH}/{created['id']}", json={"default": True}).json()
        assert changed == created | {"default": True, "updated_at": changed["updated_at"]}
        assert client.post(f"{PATH}/production", json={"credentials": {}}).json()["credentials"] == []

    def test_another_kind_is_refused(self, client: TestClient, tmp_path: Path) -> None:
        client.post(PATH, json=vllm(tmp_path))
        body = {"destination": {"kind": "directory", "path": str(tmp_path)}}
        assert param_of(client.post(f"{PATH}/production", json=body)).startswith("destination")

    def test_a_deleted_one_is_a_404_and_its_name_is_free(self, client: TestClient, tmp_path: Path) -> None:
        client.post(PATH, json=vllm(tmp_path))
        assert client.delete(f"{PATH}/production").json()["deleted"] is True
        assert client.get(f"{PATH}/production").status_code == 404
        assert client.post(PATH, json=vllm(tmp_path)).status_code == 200
