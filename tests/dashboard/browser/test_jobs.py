"""The list of jobs."""

from __future__ import annotations

import re

from playwright.sync_api import Route, expect

from app.db.engine import transaction
from app.db.tables import Job
from app.web.pages.jobs.compare import MAX_JOBS
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import MODEL, World


def test_every_job_is_listed_with_its_state_curve_and_losses(open_page: Open, world: World) -> None:
    with transaction(world.sessions) as session:
        progress = session.get_one(Job, world.jobs["running"]).progress or {}
    page = open_page("/jobs")
    row = page.get_by_role("row").filter(has_text="support-bot-v3")
    expect(row).to_contain_text("Succeeded")
    expect(row).to_contain_text("120 of 120 steps")
    expect(row).to_contain_text("support-tickets.jsonl")
    expect(row.get_by_role("img", name="Train loss of support-bot-v3")).to_be_visible()
    expect(row).to_contain_text(re.compile(r"0\.\d{3}"))
    running = page.get_by_role("row").filter(has_text="support-bot-v4")
    expect(running.get_by_role("progressbar")).to_have_attribute(
        "aria-valuenow", f"{100 * progress['step'] / progress['total_steps']:.0f}"
    )
    expect(running).to_contain_text("left")
    expect(page.get_by_role("row").filter(has_text="long-context")).to_contain_text("out of memory")


def test_filters_search_order_and_selection_are_in_the_url(open_page: Open) -> None:
    page = open_page("/jobs")
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_text("2 jobs shown")).to_be_visible()
    page.wait_for_url("**/jobs?status=failed")
    page.get_by_label("Search").fill("LONG-con")
    expect(page.get_by_text("1 job shown")).to_be_visible()
    page.get_by_label("Select long-context").check()
    page.wait_for_url(re.compile(r"q=LONG-con&status=failed&select=ftjob-"))
    page.reload()
    expect(page.get_by_text("1 job shown")).to_be_visible()
    expect(page.get_by_label("Select long-context")).to_be_checked()


def test_the_comparison_of_the_selected_jobs_is_in_view(open_page: Open) -> None:
    page = open_page("/jobs")
    page.set_viewport_size({"width": 1280, "height": 450})
    for name in ("support-bot-v2", "support-bot-v3"):
        page.get_by_role("checkbox", name=name).check()
    compare = page.get_by_role("link", name="Compare 2 jobs")
    expect(compare).to_be_in_viewport(ratio=1)
    page.evaluate("scrollTo(0, 0)")
    expect(compare).to_be_in_viewport(ratio=1)


def test_a_job_above_the_limit_is_not_selected(open_page: Open) -> None:
    page = open_page("/jobs")
    boxes = page.get_by_role("checkbox")
    for number in range(MAX_JOBS):
        boxes.nth(number).check()
    expect(page.get_by_role("link", name=f"Compare {MAX_JOBS} jobs")).to_be_visible()
    boxes.nth(MAX_JOBS).click()
    expect(page.get_by_text(f"Up to {MAX_JOBS} jobs can be compared")).to_be_visible()
    expect(boxes.nth(MAX_JOBS)).not_to_be_checked()


def test_every_column_sorts_and_the_order_is_in_the_url(open_page: Open) -> None:
    page = open_page("/jobs?status=succeeded,running")
    expect(page.get_by_label("Status").locator("option:checked")).to_have_text("succeeded,running")
    first = page.get_by_role("row").nth(1)
    for label, name, sort in (
        ("Created", "support-bot-v3", "created_at"),
        ("Job", "<img src=x", "name"),
        ("Best valid. loss", "support-bot-v", "valid_loss"),
        ("Progress", "support-bot-v4", "progress"),
        ("Status", "support-bot-v4", "status"),
    ):
        page.get_by_role("button", name=label, exact=True).click()
        page.wait_for_url(f"**sort={sort}")
        expect(first).to_contain_text(name)
    page.get_by_role("button", name="Status", exact=True).click()
    page.wait_for_url("**sort=-status")
    page.reload()
    expect(page.get_by_role("columnheader", name="Status")).to_have_attribute("aria-sort", "descending")
    expect(page.get_by_role("row").last).to_contain_text("support-bot-v4")


def test_the_second_of_two_quick_clicks_turns_the_order(open_page: Open) -> None:
    page = open_page("/jobs")
    page.get_by_role("button", name="Job", exact=True).evaluate("button => { button.click(); button.click() }")
    page.wait_for_url("**sort=-name")
    expect(page.get_by_role("columnheader", name="Job")).to_have_attribute("aria-sort", "descending")


def test_one_select_sorts_the_cards_of_a_phone(open_page: Open) -> None:
    page = open_page("/jobs?status=succeeded,running", is_narrow=True)
    expect(page.get_by_role("button", name="Progress")).to_have_count(0)
    first = page.locator("tbody tr").first
    for label, sort, name in (
        ("Job, descending", "-name", "support-bot-v4"),
        ("Job, ascending", "name", "<img src=x"),
    ):
        page.get_by_label("Sort by").select_option(label)
        page.wait_for_url(f"**sort={sort}")
        expect(first).to_contain_text(name)
    page.reload()
    expect(page.get_by_label("Sort by")).to_have_value("name")


def test_a_filter_that_the_api_refuses_is_named_with_the_whole_list(open_page: Open) -> None:
    page = open_page("/jobs?status=nonsense")
    expect(page.get_by_role("alert")).to_contain_text("nonsense")
    page.get_by_role("link", name="Show all").click()
    expect(page.get_by_role("link", name="support-bot-v3")).to_be_visible()


def test_a_new_job_appears_by_itself(open_page: Open, world: World) -> None:
    page = open_page("/jobs?q=appears")
    expect(page.get_by_text("No job matches")).to_be_visible()
    world.add_job("appears-by-itself")
    expect(page.get_by_role("link", name="appears-by-itself")).to_be_visible()


def test_a_project_without_jobs_gets_the_first_job_as_curl_python_and_cli(open_page: Open, world: World) -> None:
    page = open_page("/jobs", key=world.add_key("empty"))
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    expect(page.get_by_text(f"{world.api_url} KEY=")).to_be_visible()
    page.get_by_role("tab", name="Command line").click()
    expect(page.get_by_text(f"tunery jobs create --model {MODEL}")).to_be_visible()


def test_a_page_that_loads_slowly_shows_a_bar(open_page: Open) -> None:
    page = open_page("/jobs")
    held: list[Route] = []
    page.route("**/queue", lambda route: held.append(route))
    page.evaluate(
        "new MutationObserver(() => document.body.matches('.t-leaving') && console.log('the bar is shown'))"
        ".observe(document.body, {attributes: true})"
    )
    with page.expect_console_message(lambda message: message.text == "the bar is shown"):
        page.get_by_role("link", name="Queue").click(no_wait_after=True)
    held[0].fallback()
    page.wait_for_url("**/queue")
    expect(page.locator("body.t-leaving")).to_have_count(0)
