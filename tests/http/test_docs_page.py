"""/docs: every operation, nothing from the internet, and a key that is nowhere kept."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from app.api.docs_page.page import SCRIPT
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tools.api_reference.__main__ import document


class Tags(HTMLParser):
    """What a browser would load, run or follow."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def page(client: TestClient) -> str:
    return client.get("/docs").text


def inside(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class TestThePage:
    def test_the_page_has_every_operation_with_its_examples(self, page: str) -> None:
        for item in document()["paths"].values():
            for operation in item.values():
                assert f'<section id="{operation["operationId"]}">' in page
        assert page.count("curl -s") >= len(document()["paths"])

    def test_asks_beside_itself_wherever_a_gateway_shows_it(self, page: str) -> None:
        paths = [attributes["data-path"] for _, attributes in Tags(page).found if attributes.get("data-path")]
        assert "v1/files" in paths
        assert not [path for path in paths if path and path.startswith("/")]

    def test_runs_what_its_policy_names_and_nothing_else(self, client: TestClient) -> None:
        answer = client.get("/docs")
        (style,), (script,) = inside(answer.text, "style"), inside(answer.text, "script")
        rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
        assert rules == {
            "default-src": "'none'", "style-src": digest(style), "script-src": digest(script), "connect-src": "'self'",
            "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        }  # fmt: skip

    def test_keeps_the_key_in_its_field_alone(self, page: str) -> None:
        script = SCRIPT.read_text(encoding="utf-8")
        assert not re.search(r"localStorage|sessionStorage|indexedDB|cookie|innerHTML|eval\(|document\.write", script)
        (field,) = [attributes for tag, attributes in Tags(page).found if attributes.get("id") == "key"]
        assert (field["type"], field["autocomplete"]) == ("password", "off")

    def test_escapes_what_the_document_says(self, settings: Settings, storage: LocalStorage) -> None:
        app = create_app(settings, storage=storage)
        app.openapi_schema = document() | {"info": {"title": "<script>x()</script>", "version": "1"}}
        app.openapi_schema["info"]["description"] = "`<img src=x>`"
        with TestClient(app) as client:
            page = client.get("/docs").text
        assert "<script>x()" not in page
        assert "<img" not in page

    def test_and_the_document_can_be_closed(self, settings: Settings, storage: LocalStorage) -> None:
        closed = settings.model_copy(update={"docs_enabled": False})
        with TestClient(create_app(closed, storage=storage)) as client:
            for path in ("/docs", "/openapi.json", "/job.schema.json", "/redoc"):
                assert client.get(path).status_code == 404
