"""Sign-in by API key: a cookie that scripts cannot read; the key never reaches the browser again."""

from __future__ import annotations

import httpx2
import pytest
from playwright.sync_api import expect

from app.db.engine import transaction
from app.services.access import keys
from tests.browser.conftest import Open
from tests.browser.conftest import sign_in as fill_in_form
from tests.browser.dashboard import dashboard, sign_in
from tests.browser.world import World
from tests.factories import find_key, make_key, make_project
from tests.serving import free_port


class TestSignIn:
    def test_a_request_without_a_session_is_sent_to_the_form_and_back(
        self, open_page: Open, world: World, web_url: str
    ) -> None:
        page = open_page("/jobs?status=failed", key=None)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.get_by_label("API key").fill(world.admin_key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{web_url}/jobs?status=failed")
        expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()

    def test_a_wrong_key_is_explained(self, open_page: Open) -> None:
        page = open_page("/sign-in", key=None)
        page.get_by_label("API key").fill("tnry_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("does not accept this key")

    def test_the_key_is_in_no_page_no_script_and_no_storage(self, open_page: Open, world: World, web_url: str) -> None:
        page = open_page("/sign-in", key=None)
        fill_in_form(page, web_url, world.admin_key)
        page.get_by_role("link", name="support-bot-v3").wait_for()
        stores = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
        assert world.admin_key not in page.content() + stores
        assert "tunery_session" not in stores

    @pytest.mark.parametrize("target", ["https://evil.test/", "//evil.test", "/\\evil.test", "javascript:alert(1)"])
    def test_another_site_is_no_target(self, web_url: str, world: World, target: str) -> None:
        form = {"api_key": world.admin_key, "next": target}
        response = httpx2.post(f"{web_url}/sign-in", data=form, trust_env=False)
        assert response.headers["location"] == "/jobs"

    def test_the_cookie_is_opaque_and_closed_to_scripts_and_other_sites(self, web_url: str, world: World) -> None:
        response = httpx2.post(f"{web_url}/sign-in", data={"api_key": world.admin_key}, trust_env=False)
        cookie = response.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Max-Age=43200" in cookie
        assert world.admin_key not in cookie

    def test_the_cookie_is_for_tls_alone_behind_a_proxy_that_ends_it(self, web_url: str, world: World) -> None:
        cookies = [
            httpx2.post(
                f"{web_url}/sign-in",
                data={"api_key": world.admin_key},
                headers={"X-Forwarded-Proto": protocol},
                trust_env=False,
            ).headers["set-cookie"]
            for protocol in ("https", "http")
        ]
        assert ["Secure" in cookie for cookie in cookies] == [True, False]

    def test_a_long_address_leads_back_to_its_page(self, web_url: str, world: World) -> None:
        target = f"/jobs?q={'a' * 6_000}"
        response = httpx2.post(f"{web_url}/sign-in", data={"api_key": world.admin_key, "next": target}, trust_env=False)
        assert response.headers["location"] == target

    def test_a_form_of_another_site_is_refused(self, web_url: str, world: World) -> None:
        headers = {"Origin": "https://evil.test"}
        response = httpx2.post(
            f"{web_url}/sign-in", data={"api_key": world.admin_key}, headers=headers, trust_env=False
        )
        assert response.status_code == 403
        assert "set-cookie" not in response.headers


class TestEnd:
    def test_signing_out_ends_the_session_in_every_tab(self, open_page: Open) -> None:
        page = open_page("/jobs")
        other_tab = page.context.new_page()
        other_tab.goto(page.url)
        expect(other_tab.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("status")).to_contain_text("You are signed out")
        other_tab.wait_for_url("**/sign-in?**")

    def test_a_revoked_key_loses_its_sessions(self, open_page: Open, world: World) -> None:
        with transaction(world.sessions) as session:
            project = make_project(session)
            secret = make_key(session, project, "short-lived")
        page = open_page("/jobs?q=one", key=secret)
        page.get_by_label("Search").fill("another")
        page.wait_for_url("**/jobs?q=another")
        with transaction(world.sessions) as session:
            found = find_key(session, secret)
            assert found is not None
            keys.revoke(session, None, found.id)
        page.wait_for_url("**/sign-in?reason=revoked&next=%2Fjobs%3Fq%3Danother", timeout=60_000)
        expect(page.get_by_role("status")).to_contain_text("does not accept your key any more")


def test_a_dead_api_is_named_at_sign_in(open_page: Open) -> None:
    api_url = f"http://127.0.0.1:{free_port()}"
    with dashboard(api_url) as url:
        page = open_page("/sign-in", key=None, url=url)
        page.get_by_label("API key").fill("tnry_any")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text(f"The API at {api_url} cannot be reached")
        expect(page.get_by_role("alert")).to_contain_text("Check that it runs")
        assert "Traceback" not in page.content()
        response = httpx2.post(f"{url}/sign-in", data={"api_key": "tnry_any"}, trust_env=False)
        assert response.status_code == 503
        assert f"The API at {api_url} cannot be reached" in response.text
        assert sign_in(url, "tnry_any") == {}
