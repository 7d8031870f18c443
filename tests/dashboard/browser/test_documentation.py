"""The documentation's site at /docs: search, colours and a phone, with no request to another host.

`open_page` refuses other hosts and reports what a content security policy stops.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from app.api.docs_page.page import SITE
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import World
from tools.docs.site import build


@pytest.fixture
def docs_url(world: World) -> str:
    """Of the site as `make setup` has built it: what the pages say has tests of its own."""
    if not SITE.is_dir():
        build()
    return f"{world.api_url}/docs/"


def test_search_finds_a_page_and_leads_to_it(open_page: Open, docs_url: str) -> None:
    page = open_page("", key=None, url=docs_url)
    page.get_by_role("button", name="Search").first.click()
    page.get_by_role("combobox").fill("idempotency_key_reused")
    page.locator("a", has_text="idempotency_key_reused").first.click()
    page.wait_for_url("**/docs/reference/errors/**")
    expect(page.get_by_role("heading", name="idempotency_key_reused").first).to_be_in_viewport()


def test_the_three_languages_are_tabs(open_page: Open, docs_url: str) -> None:
    page = open_page("start/first-job/", key=None, url=docs_url)
    page.locator(".tabbed-labels").last.get_by_text("curl", exact=True).click()
    expect(page.locator(".tabbed-block", has_text="curl -s").last).to_be_visible()
    expect(page.locator(".tabbed-block", has_text="from openai import").last).to_be_hidden()


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_page_fits_a_phone_in_the_colours_of_the_system(open_page: Open, docs_url: str, is_dark: bool) -> None:
    for path in ("start/first-job/", "reference/settings/", "api-explorer/"):
        page = open_page(path, key=None, url=docs_url, is_narrow=True, is_dark=is_dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        if path != "api-explorer/":
            assert _brightness(page) < 0.3 if is_dark else _brightness(page) > 0.7


def _brightness(page: Page) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    return float(sum(colour[:3]) / 3 / 255)
