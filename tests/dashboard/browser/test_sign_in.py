"""Sign-in by API key: a cookie that scripts cannot read; the key never reaches the browser again."""

from __future__ import annotations

import httpx2
import pytest
from playwright.sync_api import expect

from app.db.engine import transaction
from app.services.access import keys
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.conftest import sign_in as fill_in_form
from tests.dashboard.browser.dashboard import dashboard
from tests.dashboard.browser.world import World
from tests.factories import find_key
from tests.serving import free_port


def post(url: str, key: str, headers: dict[str, str] | None = None, **form: str) -> httpx2.Response:
    """The response to the form."""
    return httpx2.post(f"{url}/sign-in", data={"api_key": key, **form}, headers=headers, trust_env=False)


def test_a_request_without_a_session_is_sent_to_the_form_and_back(open_page: Open, world: World, web_url: str) -> None:
    page = open_page("/jobs?status=failed", key=None)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("API key").fill("tnry_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
    page.get_by_label("API key").fill(world.admin_key)
    expect(page.get_by_label("API key")).to_have_attribute("type", "password")
    page.get_by_label("Show the key").check()
    expect(page.get_by_label("API key")).to_have_attribute("type", "text")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{web_url}/jobs?status=failed")
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()


def test_the_key_is_in_no_page_no_script_and_no_storage(open_page: Open, world: World, web_url: str) -> None:
    page = open_page("/sign-in", key=None)
    fill_in_form(page, web_url, world.admin_key)
    page.get_by_role("link", name="support-bot-v3").wait_for()
    stores = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert world.admin_key not in page.content() + stores
    assert "tunery_session" not in stores


LONG = f"/jobs?q={'a' * 6_000}"
OTHER_SITES = ("https://evil.test/", "//evil.test", "/\\evil.test", "javascript:alert(1)")


@pytest.mark.parametrize(("target", "location"), [(LONG, LONG), *((each, "/jobs") for each in OTHER_SITES)])
def test_the_form_leads_back_to_pages_of_the_dashboard_alone(
    web_url: str, world: World, target: str, location: str
) -> None:
    assert post(web_url, world.admin_key, next=target).headers["location"] == location


@pytest.mark.parametrize(("protocol", "is_secure"), [("http", False), ("https", True)])
def test_the_cookie_is_opaque_and_closed_to_scripts_and_other_sites(
    web_url: str, world: World, protocol: str, is_secure: bool
) -> None:
    """It is for TLS alone behind a proxy that ends it."""
    cookie = post(web_url, world.admin_key, {"X-Forwarded-Proto": protocol}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Max-Age=43200"} <= set(cookie.split("; "))
    assert ("Secure" in cookie) == is_secure
    assert world.admin_key not in cookie


def test_a_form_of_another_site_is_refused(web_url: str, world: World) -> None:
    response = post(web_url, world.admin_key, {"Origin": "https://evil.test"})
    assert (response.status_code, response.headers.get("set-cookie")) == (403, None)


def test_signing_out_ends_the_session_in_every_tab(open_page: Open) -> None:
    page = open_page("/jobs")
    other_tab = page.context.new_page()
    other_tab.goto(page.url)
    expect(other_tab.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_contain_text("You are signed out")
    other_tab.wait_for_url("**/sign-in?**")


def test_a_revoked_key_loses_its_sessions(open_page: Open, world: World) -> None:
    secret = world.add_key()
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
        assert "Traceback" not in page.content()
        response = post(url, "tnry_any")
        assert (response.status_code, response.headers.get("set-cookie")) == (503, None)
