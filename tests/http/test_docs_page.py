"""/docs: the files of the site, and every operation, nothing from the internet, and a key that is nowhere kept."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.docs_page.page import SCRIPT
from app.main import create_app
from app.settings import Settings
from app.storage import LocalStorage
from tools.docs.reference import document

EXPLORER = "/docs/api-explorer/"
FILES = {
    "index.html": "text/html; charset=utf-8",
    "guides/waiting/index.html": "text/html; charset=utf-8",
    "guides/waiting.md": "text/markdown; charset=utf-8",
    "assets/site.css": "text/css; charset=utf-8",
    "assets/logo.svg": "image/svg+xml",
    "search.json": "application/json",
    "llms-full.txt": "text/plain; charset=utf-8",
}


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
    return client.get(EXPLORER).text


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
        assert "../../v1/files" in paths
        assert not [path for path in paths if path and path.startswith("/")]

    def test_runs_what_its_policy_names_and_nothing_else(self, client: TestClient) -> None:
        answer = client.get(EXPLORER)
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
            page = client.get(EXPLORER).text
        assert "<script>x()" not in page
        assert "<img" not in page

    def test_and_the_document_can_be_closed(self, settings: Settings, storage: LocalStorage) -> None:
        closed = settings.model_copy(update={"docs_enabled": False})
        with TestClient(create_app(closed, storage=storage)) as client:
            for path in ("/docs", EXPLORER, "/llms.txt", "/openapi.json", "/job.schema.json", "/redoc"):
                assert client.get(path).status_code == 404


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of a few files, beside a file that is not a part of it."""
    site = tmp_path / "site"
    for name in FILES:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(f"the file {name}")
    (site / "llms.txt").write_text("# Tunery\n\n- [Waiting](guides/waiting.md): Wait.\n")
    (tmp_path / "secret.txt").write_text("secret")
    (site / "linked.txt").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setattr("app.api.docs_page.page.SITE", site)
    return site


class TestTheSite:
    def test_a_file_has_its_type_and_an_etag(self, client: TestClient, site: Path) -> None:
        for name, media_type in FILES.items():
            path = "/llms-full.txt" if "llms" in name else f"/docs/{name.removesuffix('index.html')}"
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, media_type), name
            assert answer.text == f"the file {name}"
            assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")

    def test_a_directory_has_one_address(self, client: TestClient, site: Path) -> None:
        for path in ("/docs", "/docs/guides/waiting"):
            answer = client.get(path)
            assert (answer.status_code, answer.url.path) == (200, f"{path}/")

    @pytest.mark.parametrize(
        "path",
        ["%2e%2e/secret.txt", "guides/..%2f..%2fsecret.txt", "linked.txt", "/etc/passwd", "%2fetc%2fpasswd", "nowhere"],
    )
    def test_a_path_out_of_the_site_is_unknown(self, client: TestClient, site: Path, path: str) -> None:
        answer = client.get(f"/docs/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")

    def test_each_link_of_llms_txt_is_an_address_of_this_server(self, client: TestClient, site: Path) -> None:
        links = re.findall(r"\]\((.+?)\)", client.get("/llms.txt").text)
        assert links == ["http://testserver/docs/guides/waiting.md"]
        assert client.get(links[0]).status_code == 200

    def test_without_a_site_every_path_leads_to_the_explorer_which_says_so(
        self, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("app.api.docs_page.page.SITE", tmp_path / "none")
        for path in ("/docs", "/docs/guides/waiting/", "/docs/reference/errors/"):
            answer = client.get(path)
            assert (answer.status_code, answer.url.path) == (200, EXPLORER)
            assert "<code>make docs</code>" in answer.text
        assert client.get("/llms.txt").status_code == 404
