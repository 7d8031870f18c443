"""Every screen: usable by a screen reader, at two widths and in both modes. `make screenshots` keeps pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.browser.world import World

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "docs" / "screenshots"
SERIOUS = ("serious", "critical")
SCREENS = {
    "sign-in": "/sign-in?reason=signed-out",
    "jobs": "/jobs",
    "job": "/jobs/{succeeded}",
    "job-failed": "/jobs/{failed}",
    "job-running": "/jobs/{running}",
    "job-samples": "/jobs/{succeeded}?tab=samples",
    "datasets": "/datasets",
    "dataset": "/datasets/{file:tickets}",
    "new-job": "/jobs/new?file={file:tickets}",
    "compare": "/jobs/compare?jobs={succeeded},{earlier}",
    "adapters": "/adapters",
    "adapter": "/adapters/{succeeded}",
    "queue": "/queue",
    "project": "/project",
    "admin": "/admin",
}
VARIANTS = {
    "wide-light": (False, False),
    "wide-dark": (False, True),
    "narrow-light": (True, False),
    "narrow-dark": (True, True),
}


def path_of(screen: str, world: World) -> str:
    path = SCREENS[screen]
    for name, job_id in world.jobs.items():
        path = path.replace(f"{{{name}}}", job_id)
    for name, file_id in world.files.items():
        path = path.replace(f"{{file:{name}}}", file_id)
    return path


def settle(page: Page) -> None:
    """Wait until nothing is loading any more."""
    expect(page.locator("main h1")).to_be_visible()
    expect(page.locator(".t-busy")).to_have_count(0, timeout=30_000)
    page.wait_for_function("!document.querySelector('.t-chart') || document.querySelector('.t-chart canvas')")


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_is_accessible_and_fits_its_width(open_page: Open, world: World, screen: str) -> None:
    key = None if screen == "sign-in" else world.admin_key
    for is_narrow, is_dark in ((False, False), (True, True)):
        page = open_page(path_of(screen, world), key=key, is_narrow=is_narrow, is_dark=is_dark)
        settle(page)
        found = Axe().run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in SERIOUS]
        assert serious == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.context.close()


@pytest.mark.skipif("TUNERY_WRITE_SCREENSHOTS" not in os.environ, reason="writes docs/screenshots: make screenshots")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("screen", SCREENS)
def test_write_a_screenshot(open_page: Open, world: World, screen: str, variant: str) -> None:
    is_narrow, is_dark = VARIANTS[variant]
    key = None if screen == "sign-in" else world.admin_key
    page = open_page(path_of(screen, world), key=key, is_narrow=is_narrow, is_dark=is_dark)
    settle(page)
    page.wait_for_timeout(500)  # the last animation of a chart
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{screen}-{variant}.png", clip=_visible_part(page))


def _visible_part(page: Page) -> dict[str, float]:
    """At most one and a half windows: pictures stay small."""
    size = page.viewport_size
    assert size is not None
    height = min(page.evaluate("document.documentElement.scrollHeight"), 1.5 * size["height"])
    return {"x": 0, "y": 0, "width": size["width"], "height": height}
