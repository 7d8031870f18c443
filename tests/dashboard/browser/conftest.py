"""A world behind a live API and its dashboard, once per session, and a browser that refuses other hosts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright
from sqlalchemy import Engine

from tests.dashboard.browser.dashboard import dashboard
from tests.dashboard.browser.dashboard import sign_in as session_cookies
from tests.dashboard.browser.world import World, serving_world

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MILLISECONDS = 30_000
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

expect.set_options(timeout=PATIENCE_MILLISECONDS)

Open = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    directory = f"{Path(__file__).parent}/"
    for item in items:
        if str(item.path).startswith(directory):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def world(
    postgres_server: str, postgres_cleaner: Engine, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with postgres_cleaner.connect() as connection:
        connection.exec_driver_sql("SELECT pg_temp.clean()")  # an earlier test of this process may have left jobs
    with serving_world(postgres_server, valkey_server, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture(scope="session")
def web_url(world: World) -> Iterator[str]:
    with dashboard(world.api_url) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, world: World, web_url: str) -> Iterator[Open]:
    """Open a path of the dashboard, signed in. A request to another host and an error of a script fail the test."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_page(
        path: str, key: str | None = world.admin_key, is_narrow: bool = False, is_dark: bool = False, url: str = web_url
    ) -> Page:
        context = browser.new_context(
            viewport=NARROW if is_narrow else WIDE, color_scheme="dark" if is_dark else "light"
        )
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        contexts.append(context)
        context.route("**/*", lambda route: _refuse_other_hosts(route, problems))
        page = context.new_page()
        page.on("websocket", lambda socket: _record_other_host(socket.url, problems))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("console", lambda message: _record_violation(message, problems))
        if key is not None:  # without the form and the list of jobs that follows it, which take half of a test's time
            cookies = session_cookies(url, key).items()
            context.add_cookies(
                [{"name": name, "value": value, "url": url, "httpOnly": True} for name, value in cookies]
            )
        page.goto(f"{url}{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def sign_in(page: Page, url: str, key: str) -> None:
    """Sign in with the form."""
    page.goto(f"{url}/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/jobs")


def _refuse_other_hosts(route: Route, problems: list[str]) -> None:
    if route.request.url.startswith(("data:", "blob:")) or not _record_other_host(route.request.url, problems):
        route.continue_()
    else:
        route.abort()


def _record_other_host(url: str, problems: list[str]) -> bool:
    if is_other := urlsplit(url).hostname != "127.0.0.1":
        problems.append(f"a request left this machine: {url}")
    return is_other


def _record_violation(message: ConsoleMessage, problems: list[str]) -> None:
    if message.type == "error" and "Content Security Policy" in message.text:
        problems.append(message.text)
