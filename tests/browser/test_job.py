"""The page of one job."""

from __future__ import annotations

import csv
import io
import re

import pytest
from playwright.sync_api import expect

from app.db.engine import transaction
from app.db.tables import Job
from tests.browser.conftest import Open
from tests.browser.world import ANSWERS, MODEL, World, append_steps
from tests.factories import make_file, make_job, make_project


def test_a_running_job_says_what_happens_and_its_step_moves(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['running']}")
    expect(page.get_by_text(re.compile(r"^Training: step 1\d\d of 300 steps\. About"))).to_be_visible()
    chart = page.get_by_role("img", name=re.compile("Curves of support-bot-v4"))
    expect(chart.locator("canvas").first).to_be_visible()
    with transaction(world.sessions) as session:
        job = session.get(Job, world.jobs["running"])
        assert job is not None
        step = int((job.progress or {})["step"])
        append_steps(session, job, step + 1, step + 2, 300, 2.2)
    expect(page.get_by_text(re.compile(rf"^Training: step {step + 2} of 300"))).to_be_visible()


def test_every_tab_shows_its_subject(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    expect(page.get_by_text("at step 90")).to_be_visible()
    page.get_by_role("tab", name="Events").click()
    expect(page.get_by_text("The job has successfully completed")).to_be_visible()
    page.wait_for_url("**?tab=events")
    page.get_by_role("tab", name="Log").click()
    expect(page.get_by_text("The trainer has written nothing.")).to_be_visible()
    page.get_by_role("tab", name="Samples").click()
    expect(page.get_by_text(ANSWERS[1]).first).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_role("row").filter(has_text="n_epochs")).to_contain_text("auto")
    expect(page.get_by_role("row").filter(has_text="lora.r").first).to_contain_text("16")
    expect(page.get_by_text('"rank": 16')).to_be_visible()
    page.get_by_role("tab", name="Attempts").click()
    expect(page.get_by_role("row").filter(has_text="Training").filter(has_text="finished")).to_be_visible()
    page.get_by_role("tab", name="Checkpoints").click()
    expect(page.get_by_role("link", name="Download").first).to_be_visible()
    page.get_by_role("tab", name="Evaluations").click()
    row = page.get_by_role("row").filter(has_text="label_accuracy")
    expect(row).to_contain_text(re.compile(r"0\.410.*0\.930.*\+0\.520"))
    expect(page.get_by_text("The adapter may be delivered")).to_be_visible()
    page.get_by_role("tab", name="Deliveries").click()
    expect(page.get_by_role("row").filter(has_text="staging")).to_contain_text("serves what was trained")
    expect(page.get_by_role("row").filter(has_text="production")).to_contain_text("serves the base model")
    expect(page.get_by_role("row").filter(has_text="vLLM")).to_contain_text("--enable-lora")


def test_the_metrics_can_be_downloaded_as_csv(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [rows[0]["step"], rows[-1]["step"]] == ["1", "120"]


def test_a_failed_job_has_its_cause_its_remedy_and_a_repaired_form(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['failed']}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("do not fit into memory")
    expect(alert).to_contain_text("What to do")
    page.get_by_role("link", name="Create a repaired job").click()
    expect(page.get_by_text("context length: 512 → 256 tokens")).to_be_visible()
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Context length")).to_have_value("256")
    expect(page.get_by_label("Batch size")).to_have_value("8")


def test_a_job_is_cancelled_after_a_question(open_page: Open, world: World) -> None:
    with transaction(world.sessions) as session:
        project = make_project(session)
        job_id = make_job(session, project, make_file(session, world.storage, project), MODEL, suffix="to-cancel").id
    page = open_page(f"/jobs/{job_id}")
    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel job").click()
    expect(page.get_by_text("Cancelled after 0 steps.")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel job")).to_have_count(0)


def test_a_paused_job_is_resumed(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['paused']}")
    expect(page.get_by_text("Paused at step 25.")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("The files are valid.")).to_be_visible()


def test_an_unknown_job_is_named(open_page: Open) -> None:
    page = open_page("/jobs/ftjob-000000000000000000000000")
    expect(page.get_by_role("alert")).to_contain_text("ftjob-000000000000000000000000")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_jobs_are_compared_by_curves_and_differing_settings(open_page: Open, world: World, theme: str) -> None:
    ids = f"{world.jobs['succeeded']},{world.jobs['earlier']}"
    page = open_page(f"/jobs/compare?jobs={ids}", is_dark=theme == "dark")
    expect(page.get_by_role("img", name="Curves of the compared jobs").locator("canvas").first).to_be_visible()
    row = page.get_by_role("row").filter(has_text="lora.r")
    expect(row.first).to_contain_text("16")
    expect(row.first).to_contain_text("8")
    assert page.get_by_role("row").filter(has_text="batch_size").count() == 0
