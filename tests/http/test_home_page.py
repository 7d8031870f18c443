"""`/` leads browsers to the dashboard, and stays a 404 for programs."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings.model_copy(update={"web_url": "http://dashboard.test/?a=1&b=2"}))


def test_a_browser_gets_a_link_to_the_dashboard(client: TestClient) -> None:
    response = client.get("/", headers=BROWSER)
    assert response.status_code == 200
    assert 'href="http://dashboard.test/?a=1&amp;b=2"' in response.text


def test_a_program_gets_the_404_of_an_unknown_url(client: TestClient) -> None:
    response = client.get("/", headers={"Accept": "application/json"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


def test_only_the_root_refers_to_the_dashboard(client: TestClient) -> None:
    assert client.get("/unknown", headers=BROWSER).json()["error"]["code"] == "unknown_url"


def test_without_a_dashboard_a_browser_gets_the_404(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        assert client.get("/", headers=BROWSER).json()["error"]["code"] == "unknown_url"
