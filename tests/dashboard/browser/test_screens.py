"""Every screen: usable by a screen reader, at two widths and in both modes. `make screenshots` keeps pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import World

ROOT = Path(__file__).resolve().parents[3]
SCREENSHOTS = ROOT / ".screenshots"
HOSTILE_COLUMN = "<img src=x onerror=alert(1)>" + "x" * 300
REPORTED = ("moderate", "serious", "critical")
# What a finger cannot press well (WCAG 2.5.5): less than 44 px high. Links within a sentence are excepted.
SMALL_TARGETS = """
[...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest("p, .t-sr-only, .t-skip"))
  .map((one) => (one.type === "checkbox" ? one.closest("label") : one))
  .filter((one) => one.getBoundingClientRect().height < 43.9)
  .map((one) => `${one.getBoundingClientRect().height}: ${one.outerHTML.slice(0, 150)}`)
"""
FADED = """Promise.allSettled(document.getAnimations()
    .filter(one => one.effect.getComputedTiming().iterations !== Infinity).map(one => one.finished))"""
SCREENS = {
    "sign-in": "/sign-in?reason=signed-out",
    "jobs": "/jobs",
    "job": "/jobs/{succeeded}",
    "job-failed": "/jobs/{failed}",
    "job-running": "/jobs/{running}",
    "job-curves": "/jobs/{succeeded}?tab=metrics",
    "job-log": "/jobs/{running}?tab=log",
    "job-samples": "/jobs/{succeeded}?tab=samples",
    "job-evaluations": "/jobs/{succeeded}?tab=evaluations",
    "job-settings": "/jobs/{succeeded}?tab=settings",
    "job-attempts": "/jobs/{succeeded}?tab=attempts",
    "job-exports": "/jobs/{succeeded}?tab=exports",
    "job-deliveries": "/jobs/{succeeded}?tab=deliveries",
    "datasets": "/datasets",
    "dataset": "/datasets/{file:tickets}",
    "new-job": "/jobs/new?file={file:tickets}",
    "variants": "/jobs/variants?job={succeeded}",
    "compare": "/jobs/compare?jobs={succeeded},{earlier}",
    "adapters": "/adapters",
    "adapter": "/adapters/{succeeded}",
    "queue": "/queue",
    "project": "/project",
    "admin": "/admin",
}
# Pictures after a press: of the screen, and the name of the button.
PRESSED = {
    "dialog-export": ("job-exports", "New export"),
    "dialog-evaluation": ("job-evaluations", "New evaluation"),
    "dialog-delivery": ("job-deliveries", "Deliver"),
    "dataset-row": ("dataset-broken", "Show row of line 3"),
}
# Further views without a picture.
VIEWS = SCREENS | {
    "job-events": "/jobs/{succeeded}?tab=events",
    "job-checkpoints": "/jobs/{succeeded}?tab=checkpoints",
    "job-hostile": "/jobs/{hostile}",
    "job-missing": "/jobs/ftjob-000000000000000000000000",
    "jobs-none": "/jobs?q=nothing-like-this",
    "dataset-broken": "/datasets/{file:broken}",
    "dataset-hostile": "/datasets/{file:hostile}",
    "repair": "/jobs/new?repair={failed}",
}
VARIANTS = {
    "wide-light": (False, False),
    "wide-dark": (False, True),
    "narrow-light": (True, False),
    "narrow-dark": (True, True),
}


def path_of(screen: str, world: World) -> str:
    path = VIEWS[screen]
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


# Two variants of a screen are in the short selection; those of the next screen are the other two.
PAIRS = (("wide-light", "narrow-dark"), ("wide-dark", "narrow-light"))
VIEWS_IN_VARIANTS = [
    pytest.param(screen, variant, marks=() if variant in PAIRS[number % 2] else pytest.mark.slow)
    for number, screen in enumerate(VIEWS)
    for variant in VARIANTS
]


@pytest.mark.parametrize(("screen", "variant"), VIEWS_IN_VARIANTS)
def test_a_screen_is_accessible_and_fits_its_width(open_page: Open, world: World, screen: str, variant: str) -> None:
    is_narrow, is_dark = VARIANTS[variant]
    key = None if screen == "sign-in" else world.admin_key
    page = open_page(path_of(screen, world), key=key, is_narrow=is_narrow, is_dark=is_dark)
    settle(page)
    require_accessible(page)
    if is_narrow:
        assert page.evaluate(SMALL_TARGETS) == []


def test_wide_content_is_reflowed_at_400_percent(open_page: Open, world: World) -> None:
    """WCAG 1.4.10: a window of 1,280 px then has 320."""
    page = open_page(path_of("job-deliveries", world))
    page.set_viewport_size({"width": 320, "height": 640})
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.goto(page.url.replace(path_of("job-deliveries", world), "/jobs"))
    settle(page)
    frame = page.locator(".t-table-frame")
    assert frame.evaluate("(one) => one.scrollWidth <= one.clientWidth")


def test_a_small_window_opens_a_job_at_its_beginning(open_page: Open, world: World) -> None:
    page = open_page("/jobs")
    page.set_viewport_size({"width": 390, "height": 450})
    page.goto(page.url.replace("/jobs", f"/jobs/{world.jobs['failed']}?tab=deliveries"))
    settle(page)
    expect(page.get_by_role("tab", name="Deliveries")).to_have_attribute("aria-selected", "true")
    page.wait_for_function("document.querySelector('.t-tabs').scrollLeft > 0")
    assert page.evaluate("scrollY") == 0


def test_state_is_visible_in_the_colours_of_the_system(open_page: Open, world: World) -> None:
    """Forced colours, as of a high contrast mode, replace backgrounds, which would be all that shows it."""
    page = open_page(path_of("job-running", world))
    page.emulate_media(forced_colors="active")
    style = "(one, name) => getComputedStyle(one)[name]"
    filled, empty = page.locator(".t-bar > div"), page.locator(".t-bar")
    assert filled.evaluate(style, "backgroundColor") != empty.evaluate(style, "backgroundColor")
    edges = [page.get_by_role("tab", name=name).evaluate(style, "borderBottomColor") for name in ("Overview", "Log")]
    assert edges[0] != edges[1]
    assert page.locator("nav a[aria-current]").evaluate(style, "outlineStyle") == "solid"


@pytest.mark.parametrize("variant", ["wide-light", "narrow-dark"])
def test_the_conversion_of_a_table_is_accessible_and_fits_its_width(
    open_page: Open, tmp_path: Path, variant: str
) -> None:
    page = open_conversion(open_page, tmp_path, variant, f"question,{HOSTILE_COLUMN}\n" + "why,because\n" * 3)
    expect(page.get_by_text("because", exact=True).first).to_be_visible()
    require_accessible(page)


def open_conversion(open_page: Open, directory: Path, variant: str, table: str) -> Page:
    (directory / "tickets.csv").write_text(table)
    is_narrow, is_dark = VARIANTS[variant]
    page = open_page("/datasets", is_narrow=is_narrow, is_dark=is_dark)
    page.locator("input[type=file]").set_input_files(directory / "tickets.csv")
    page.wait_for_url("**/datasets/convert/**")
    settle(page)
    return page


def test_an_open_dialog_and_the_further_settings_are_accessible(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['running']}", is_narrow=True)
    page.get_by_role("button", name="Cancel job").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    require_accessible(page)
    page.goto(page.url.replace(f"/jobs/{world.jobs['running']}", f"/jobs/new?clone={world.jobs['earlier']}"))
    page.get_by_text("More settings").click()
    settle(page)
    require_accessible(page)


def test_tabs_are_selected_by_the_arrow_keys(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=settings")
    page.get_by_role("tab", name="Settings").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Log", selected=True)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Samples", selected=True)).to_be_focused()
    page.goto(page.url.partition("?")[0] + "?tab=events")  # one of the list below More
    page.get_by_role("tab", name="Events").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Attempts", selected=True)).to_be_focused()


def test_an_unknown_page_leads_to_the_jobs(open_page: Open) -> None:
    page = open_page("/nothing-like-this")
    require_accessible(page)
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()


def require_accessible(page: Page) -> None:
    page.evaluate(FADED)  # a dialog that fades in has too little contrast until it is there
    violations = Axe().run(page).response["violations"]
    found = [(one["id"], one["nodes"][0]["html"][:200]) for one in violations if one["impact"] in REPORTED]
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


WRITES = pytest.mark.skipif("TUNERY_WRITE_SCREENSHOTS" not in os.environ, reason="writes pictures: make screenshots")


@WRITES
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [*SCREENS, *PRESSED])
def test_write_a_screenshot(open_page: Open, world: World, name: str, variant: str) -> None:
    is_narrow, is_dark = VARIANTS[variant]
    screen, pressed = PRESSED.get(name, (name, ""))
    key = None if screen == "sign-in" else world.admin_key
    page = open_page(path_of(screen, world), key=key, is_narrow=is_narrow, is_dark=is_dark)
    settle(page)
    page.wait_for_load_state("networkidle")  # such as the modules of a chart that followed the page
    settle(page)
    if pressed:
        page.get_by_role("button", name=pressed, exact=True).first.click()
        expect(page.get_by_role("dialog").or_(page.locator(".t-opened"))).to_be_visible()
    page.wait_for_timeout(500)  # the last animation of a chart or of a dialog
    picture = {} if pressed else {"clip": _pictured_part(page), "full_page": True}
    page.screenshot(path=SCREENSHOTS / f"{name}-{variant}.png", **picture)


@WRITES
@pytest.mark.parametrize("variant", VARIANTS)
def test_write_a_screenshot_of_a_conversion(open_page: Open, tmp_path: Path, variant: str) -> None:
    rows = "".join(f"{n},Where is order {n}?,Order {n} arrives today.,Anna\n" for n in range(12))
    page = open_conversion(open_page, tmp_path, variant, f"number,question,answer,agent\n{rows}")
    expect(page.get_by_text("Order 0 arrives today.")).to_be_visible()
    page.screenshot(path=SCREENSHOTS / f"convert-{variant}.png", clip=_pictured_part(page), full_page=True)


def _pictured_part(page: Page) -> dict[str, float]:
    """The page down to two and a half windows: pictures stay small."""
    size = page.viewport_size
    assert size is not None
    height = min(page.evaluate("document.documentElement.scrollHeight"), 2.5 * size["height"])
    return {"x": 0, "y": 0, "width": size["width"], "height": height}
