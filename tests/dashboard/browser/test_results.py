"""What follows a training: exports, evaluations and deliveries, each requested on its page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from sqlalchemy import select

from app.db.engine import transaction
from app.db.jobs import exports
from app.db.jobs.leases import Lease
from app.db.tables import Checkpoint, Job
from app.domain.artifacts.exports import ExportKind, ExportType
from tests.dashboard.browser.conftest import NARROW, Open
from tests.dashboard.browser.test_screens import require_accessible
from tests.dashboard.browser.world import World
from tests.factories import WORKER, make_file, make_project


@pytest.mark.parametrize("path", ["/jobs/{job}?tab=exports", "/adapters/{job}"])
def test_an_export_is_requested_followed_downloaded_and_deleted(open_page: Open, world: World, path: str) -> None:
    page = open_page(path.replace("{job}", world.jobs["earlier"]), is_narrow=path.startswith("/adapters"))
    page.get_by_role("button", name="New export").click()
    dialog = page.get_by_role("dialog", name="New export")
    expect(dialog.get_by_label("Quantization")).to_be_hidden()
    dialog.get_by_label("Type").select_option("gguf")
    dialog.get_by_label("Quantization").select_option("Q4_K_M")
    require_accessible(page)
    dialog.get_by_role("button", name="Export", exact=True).click()
    card = page.locator(".t-card", has=page.get_by_role("heading", name="GGUF, Q4_K_M of step 80"))
    expect(card.get_by_text("Queued")).to_be_visible()
    expect(card.get_by_role("status")).to_contain_text("No running worker makes GGUF files")
    finish_export(world)
    expect(card.get_by_text("Succeeded")).to_be_visible()
    with page.expect_download() as download:
        card.get_by_role("link", name="model-Q4_K_M.gguf").click()
    assert download.value.path().read_bytes() == b"GGUF and weights"
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete export").click()
    expect(card).to_have_count(0)


def test_an_export_that_another_tab_has_deleted_leaves_the_list(open_page: Open, world: World) -> None:
    job_id = world.add_job("two-tabs", steps=[4])
    with transaction(world.sessions) as session:
        job = session.get_one(Job, job_id)
        checkpoint = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id)).one()
        exports.insert(session, job, checkpoint, ExportKind(ExportType.MERGED, None), 1_000)
    page = open_page(f"/jobs/{job_id}?tab=exports")
    other_tab = page.context.new_page()
    other_tab.goto(page.url)
    for tab in (page, other_tab):
        tab.get_by_role("button", name="Delete", exact=True).click()
        expect(tab.get_by_role("dialog")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Delete export").click()
    expect(page.get_by_text("No exports")).to_be_visible()
    other_tab.get_by_role("dialog").get_by_role("button", name="Delete export").click()
    expect(other_tab.get_by_role("alert")).to_contain_text("No such export")
    expect(other_tab.get_by_text("No exports")).to_be_visible()


def finish_export(world: World) -> None:
    """Make the queued export, as a worker does."""
    with transaction(world.sessions) as session:
        export = exports.claim(session, WORKER, 60.0)
        assert export is not None
        project, job = make_project(session), session.get_one(Job, export.job_id)
        content = b"GGUF and weights"
        file = make_file(session, world.storage, project, content, "fine-tune-results", "model-Q4_K_M.gguf", job)
        exports.succeed(session, Lease(export.id, export.attempt, WORKER), {"files": {}}, [file.id], len(content))


def test_a_key_without_a_scope_is_not_offered_what_needs_it(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['paused']}", key=world.add_key(scopes=["all:read"]))
    url = page.url.removesuffix(f"/jobs/{world.jobs['paused']}")
    expect(page.get_by_text("read only")).to_be_visible()
    page.set_viewport_size(NARROW)
    require_accessible(page)  # the mark has its place beside the project
    expect(page.get_by_role("heading", name="night-run")).to_be_visible()
    for name in ("Resume", "Cancel job"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    page.goto(f"{url}/jobs/{world.jobs['succeeded']}?tab=deliveries")
    expect(page.get_by_role("row").filter(has_text="staging")).to_be_visible()
    expect(page.get_by_role("button", name="Withdraw staging")).to_have_count(0)
    expect(page.get_by_role("button", name="Deliver", exact=True)).to_be_hidden()
    page.goto(f"{url}/datasets")
    expect(page.get_by_role("link", name="support-tickets.jsonl")).to_be_visible()
    expect(page.get_by_role("button", name="Choose files")).to_have_count(0)
    expect(page.get_by_role("link", name="New job")).to_have_count(0)
    page.goto(f"{url}/jobs/new?file={world.files['tickets']}")
    expect(page.get_by_text("This key may not create jobs")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^Fits\. About "))).to_be_visible()


def test_a_checkpoint_of_a_job_without_a_result_is_exported(open_page: Open, world: World) -> None:
    job_id = world.add_job("stopped-early", steps=[4, 8])
    page = open_page(f"/jobs/{job_id}?tab=exports")
    page.get_by_role("button", name="New export").click()
    dialog = page.get_by_role("dialog", name="New export")
    dialog.get_by_label("Checkpoint").select_option(label="Step 4")
    dialog.get_by_role("button", name="Export", exact=True).click()
    card = page.locator(".t-card", has=page.get_by_role("heading", name="Merged model of step 4"))
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete export").click()
    expect(card).to_have_count(0)


def test_a_dialog_is_opened_and_closed_by_the_keyboard(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['earlier']}?tab=exports")
    opener, dialog = page.get_by_role("button", name="New export"), page.get_by_role("dialog", name="New export")
    opener.press("Enter")
    expect(dialog).to_be_visible()
    page.wait_for_function("document.activeElement.closest('[role=dialog]')")  # it moves there after the transition
    page.keyboard.press("Tab")
    expect(dialog.get_by_label("Checkpoint")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(opener).to_be_focused()


def test_an_evaluation_is_requested_and_cancelled(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['earlier']}?tab=evaluations")
    page.get_by_role("button", name="New evaluation").click()
    dialog = page.get_by_role("dialog", name="New evaluation")
    expect(dialog.get_by_label("File with held-out rows")).to_have_value(world.files["held_out"])
    dialog.get_by_label("Grader").select_option("label")
    dialog.get_by_label("Max rows").fill("0")
    dialog.get_by_role("button", name="Evaluate").click()
    expect(dialog.get_by_role("alert")).to_contain_text("max_rows")
    dialog.get_by_label("Max rows").fill("20")
    require_accessible(page)
    dialog.get_by_role("button", name="Evaluate").click()
    expect(page.get_by_role("heading", name="Evaluation of step 80")).to_be_visible()
    expect(page.get_by_text("Queued")).to_be_visible()
    page.get_by_role("button", name="Cancel evaluation").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel evaluation").click()
    expect(page.get_by_text("Cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel evaluation")).to_be_hidden()


def test_an_adapter_is_delivered_and_withdrawn(open_page: Open, world: World) -> None:
    page = open_page(f"/adapters/{world.jobs['earlier']}")
    page.get_by_role("link", name="Deliver").click()
    page.get_by_role("button", name="Deliver", exact=True).click()
    dialog = page.get_by_role("dialog", name="Deliver the adapter")
    dialog.get_by_label("Target").select_option(label="staging (vLLM)")
    require_accessible(page)
    dialog.get_by_role("button", name="Deliver", exact=True).click()
    row = page.get_by_role("row").filter(has_text="staging")
    expect(row).to_contain_text("Pending")
    row.get_by_role("button", name="Withdraw staging").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    expect(row).to_contain_text("Withdrawn")
    expect(row.get_by_role("button")).to_have_count(0)
