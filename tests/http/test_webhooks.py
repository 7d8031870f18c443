"""Webhook endpoints over HTTP: what is taken, what is refused, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import update
from starlette.testclient import TestClient

from app.api.schemas.webhooks import WebhookDeliveryBody, WebhookEndpointBody, WebhookEndpointWithSecret
from app.db.engine import Sessions, transaction
from app.db.operations import status
from app.db.tables import Project, WebhookDelivery
from app.db.webhooks import endpoints
from tests.api_objects import error_of

URL = "https://hooks.example.com/tunery"
SUCCEEDED = "fine_tuning.job.succeeded"
PATH = "/v1/webhook_endpoints"
Create = Callable[..., Response]


@pytest.fixture
def create(client: TestClient) -> Create:
    return lambda **changes: client.post(PATH, json={"name": "a", "url": URL, "event_types": [SUCCEEDED]} | changes)


@pytest.fixture
def endpoint(create: Create) -> dict[str, Any]:
    return dict(create().json())


@pytest.fixture
def delivery(endpoint: dict[str, Any], client: TestClient, sessions: Sessions, project: Project) -> dict[str, Any]:
    """One that waits to be sent."""
    with transaction(sessions) as session:
        endpoints.announce(session, project.id, SUCCEEDED, json.dumps({"id": "ftjob-1"}))
    return dict(client.get(f"{PATH}/{endpoint['id']}/deliveries").json()["data"][0])


class TestCreate:
    def test_a_secret_is_shown_once(self, endpoint: dict[str, Any], client: TestClient) -> None:
        WebhookEndpointWithSecret.model_validate(endpoint)
        shown = client.get(f"{PATH}/{endpoint['id']}").json()
        WebhookEndpointBody.model_validate(shown)
        assert endpoint == shown | {"signing_secret": endpoint["signing_secret"]}
        assert shown["signing_secret_hint"][-4:] == endpoint["signing_secret"][-4:]
        assert shown["enabled"] is True

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            ({"url": "http://hooks.example.com/"}, "url"),
            ({"url": "https://127.0.0.1/"}, "url"),
            ({"url": "https://user:pw@hooks.example.com/"}, "url"),
            ({"event_types": []}, "event_types"),
            ({"event_types": ["batch.completed"]}, "event_types"),
            ({"name": ""}, "name"),
        ],
    )
    def test_an_invalid_field_is_refused(self, create: Create, changes: dict[str, Any], param: str) -> None:
        assert error_of(create(**changes))["param"] == param


class TestUpdate:
    def test_a_change_keeps_absent_fields(self, endpoint: dict[str, Any], client: TestClient) -> None:
        changed = client.post(f"{PATH}/{endpoint['id']}", json={"name": "b"}).json()
        assert changed["name"] == "b"
        assert (changed["url"], changed["event_types"]) == (URL, [SUCCEEDED])
        types = ["fine_tuning.job.failed"]
        assert client.post(f"{PATH}/{endpoint['id']}", json={"event_types": types}).json()["event_types"] == types

    def test_an_endpoint_is_disabled_and_enabled(self, create: Create, client: TestClient) -> None:
        made = create(enabled=False).json()
        on, off = (client.post(f"{PATH}/{made['id']}", json={"enabled": value}).json() for value in (True, False))
        assert (made["enabled"], bool(made["disabled_reason"])) == (False, True)
        assert (on["enabled"], on["disabled_at"], on["disabled_reason"]) == (True, None, None)
        assert (off["enabled"], off["disabled_reason"]) == (False, "by request")


class TestRotate:
    @pytest.mark.parametrize("body", [{"keep_old_secret_active_for_24_hours": True}, {}, None])
    def test_a_rotation_makes_a_new_secret(self, endpoint: dict[str, Any], client: TestClient, body: Any) -> None:
        rotated = client.post(f"{PATH}/{endpoint['id']}/rotate_secret", json=body).json()
        assert rotated["signing_secret"] != endpoint["signing_secret"]
        until = rotated["old_secret_active_until"]
        assert (until is not None) == bool(body)
        assert until is None or 86_390 <= until - rotated["updated_at"] <= 86_410


class TestDeliveries:
    def test_deliveries_are_listed_by_status(
        self, endpoint: dict[str, Any], delivery: dict[str, Any], client: TestClient
    ) -> None:
        WebhookDeliveryBody.model_validate(delivery)
        assert (delivery["status"], delivery["attempts"], delivery["data"]) == ("pending", [], {"id": "ftjob-1"})
        path = f"{PATH}/{endpoint['id']}/deliveries"
        assert client.get(f"{path}/{delivery['id']}").json() == delivery
        assert len(client.get(path, params={"status": "pending"}).json()["data"]) == 1
        assert client.get(path, params={"status": "failed"}).json()["data"] == []
        assert client.get(path, params={"status": "lost"}).status_code == 400
        assert client.get(path, params={"after": delivery["id"]}).json()["data"] == []

    def test_a_delivery_is_made_again(
        self, endpoint: dict[str, Any], delivery: dict[str, Any], client: TestClient, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            done = {"state": "failed", "next_attempt_at": None, "finished_at": "2026-01-01", "attempt": 10, "tries": 10}
            session.execute(update(WebhookDelivery).values(**done))
        again = client.post(f"{PATH}/{endpoint['id']}/deliveries/{delivery['id']}/redeliver").json()
        assert (again["status"], again["event_id"], again["attempt_count"]) == ("pending", delivery["event_id"], 10)

    def test_a_disabled_endpoint_gets_no_redelivery(
        self, endpoint: dict[str, Any], delivery: dict[str, Any], client: TestClient
    ) -> None:
        client.post(f"{PATH}/{endpoint['id']}", json={"enabled": False})
        answer = client.post(f"{PATH}/{endpoint['id']}/deliveries/{delivery['id']}/redeliver")
        assert error_of(answer)["code"] == "invalid_endpoint_state"

    def test_a_deleted_endpoint_deletes_its_deliveries(
        self, endpoint: dict[str, Any], delivery: dict[str, Any], client: TestClient, sessions: Sessions
    ) -> None:
        answer = client.delete(f"{PATH}/{endpoint['id']}").json()
        assert answer == {"id": endpoint["id"], "object": "webhook_endpoint.deleted", "deleted": True}
        with transaction(sessions) as session:
            assert session.query(WebhookDelivery).count() == 0
        assert client.get(f"{PATH}/{endpoint['id']}").status_code == 404


class TestTest:
    def test_a_test_without_a_sender_is_a_503(
        self, endpoint: dict[str, Any], client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.api.routes.webhooks.SENDER_MARGIN_SECONDS", -100.0)
        answer = client.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": SUCCEEDED})
        assert answer.status_code == 503

    def test_a_copy_sends_no_test(self, endpoint: dict[str, Any], client: TestClient, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            status.report(session, status.COPY)
        answer = client.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": SUCCEEDED})
        assert error_of(answer)["code"] == "invalid_value"

    def test_an_unknown_event_is_refused(self, endpoint: dict[str, Any], client: TestClient) -> None:
        answer = client.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": "batch.completed"})
        assert error_of(answer)["param"] == "event_type"


class TestOtherProjects:
    def test_an_id_of_another_endpoint_finds_nothing_either(
        self, delivery: dict[str, Any], create: Create, client: TestClient
    ) -> None:
        other = create().json()["id"]
        assert client.get(f"{PATH}/{other}/deliveries/{delivery['id']}").status_code == 404
