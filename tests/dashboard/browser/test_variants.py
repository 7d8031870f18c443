"""Several variants of a job, created by one request, compared by their held-out rows; the best is promoted."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.engine import transaction
from app.db.tables import Delivery, Job
from tests.api_objects import EVALUATION
from tests.dashboard.browser.conftest import NARROW, Open
from tests.dashboard.browser.test_screens import require_accessible
from tests.dashboard.browser.world import MODEL, World
from tests.factories import finish_job, make_file, make_job, make_project, make_target, start_job, validate_job

PROJECT = "variants"  # of its own, whose jobs no other test sees


def row_of(page: Page, number: int) -> Locator:
    return page.locator(".t-card", has=page.get_by_role("heading", name=f"Variant {number}"))


def finish(world: World, session: Session, job: Job) -> None:
    """Train the job before all others that wait in this world."""
    job.urgent = True
    session.flush()
    assert validate_job(session) is start_job(session) is job
    finish_job(session, world.storage, make_project(session, PROJECT), job)


def score(job: Job, right: int) -> None:
    """An evaluation in which so many of 30 rows are right."""
    (grader,) = EVALUATION["summary"]["graders"]
    mean = right / 30
    changes = {
        "adapter": {"mean": mean},
        "base": {"mean": 0.0},
        "difference": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1},
    }
    scored = grader | {name: grader[name] | values | {"rows": 30} for name, values in changes.items()}
    summary = EVALUATION["summary"] | {"graders": [scored], "promotion": None}
    job.evaluation = {"id": "fteval-1", "seq": 1, "status": "succeeded", "file": "file-held-out", "error": None,
                      "precision": "bfloat16", "summary": summary}  # fmt: skip


@pytest.mark.timeout(300)
def test_variants_are_planned_created_compared_and_the_best_is_promoted(open_page: Open, world: World) -> None:
    key = world.add_key(PROJECT)
    with transaction(world.sessions) as session:
        project = make_project(session, PROJECT)
        file = make_file(session, world.storage, project)
        original = make_job(session, project, file, MODEL, suffix="varied", body={"lora": {"r": 8}}).id
    page = open_page(f"/jobs/{original}", key)
    page.get_by_role("link", name="Train a variant").click()
    expect(row_of(page, 1).get_by_label("LoRA rank")).to_have_value("8")
    expect(row_of(page, 1).get_by_text(re.compile("^Fits"))).to_be_visible()
    row_of(page, 1).get_by_label("LoRA rank").fill("300")
    expect(row_of(page, 1).get_by_role("alert")).to_contain_text("lora.r")
    expect(row_of(page, 2).get_by_text("Nothing differs")).to_be_visible()
    row_of(page, 1).get_by_label("LoRA rank").fill("4")
    row_of(page, 2).get_by_label("Epochs").fill("many")
    expect(row_of(page, 2).get_by_text("'many' is not a whole number.")).to_be_visible()
    page.get_by_role("button", name="Create 2 jobs").click()
    expect(page.get_by_text("A field has a value that cannot be used")).to_be_visible()
    row_of(page, 2).get_by_label("Epochs").fill("5")
    page.get_by_role("button", name="Add a variant").click()  # as the last one
    expect(row_of(page, 3).get_by_label("Epochs")).to_have_value("5")
    page.get_by_role("button", name="Create 3 jobs").click()
    expect(page.get_by_role("alert").filter(has_text="Variant 3 trains the same as Variant 2")).to_be_visible()
    row_of(page, 3).get_by_role("button", name="Remove").click()
    for number in (1, 2):
        expect(row_of(page, number).get_by_text(re.compile("^Fits"))).to_be_visible()
        expect(row_of(page, number).get_by_text(re.compile("GB of 80.00 GB, "))).to_be_visible()
        expect(row_of(page, number).get_by_text("Nothing differs")).to_have_count(0)
    page.set_viewport_size(NARROW)
    require_accessible(page)
    page.get_by_role("button", name="Create 2 jobs").click()
    page.wait_for_url(re.compile(f"/jobs/compare\\?group=ftgroup-[0-9a-f]+&jobs={original}"))

    results = page.get_by_role("region", name="Results").get_by_role("row")
    expect(results).to_have_count(4)  # with the head
    differing = page.get_by_role("region", name="Settings that differ").get_by_role("row")
    expect(differing.filter(has_text="lora.r").first).to_contain_text(re.compile("8.*4.*8"))
    expect(differing.filter(has_text="n_epochs")).to_contain_text("5")
    expect(differing.filter(has_text="seed")).to_have_count(0)
    expect(page.get_by_role("button", name="Promote")).to_have_count(0)
    group = page.url.split("group=")[1].split("&")[0]
    with transaction(world.sessions) as session:
        destination = {"kind": "directory", "path": "/srv/adapters"}
        make_target(session, make_project(session, PROJECT).id, "support", destination, served_model="support-bot")
        jobs = list(session.scalars(select(Job).where(Job.group_id == group).order_by(Job.seq)))
        assert [job.suffix for job in jobs] == ["varied-1", "varied-2"]
        for job, right in zip(jobs, (10, 25), strict=True):
            finish(world, session, job)
            score(job, right)
    best_id = jobs[1].id
    expect(page.get_by_text("Best: varied-2")).to_be_visible()
    best = results.filter(has_text="best; ")
    expect(best).to_have_count(1)
    expect(best).to_contain_text("25 of 30 right")
    expect(best).to_contain_text("+0.733 to +0.933")
    page.get_by_role("button", name="Promote").click()
    dialog = page.get_by_role("dialog", name="Promote varied-2")
    expect(dialog.get_by_label("Target").locator("option:checked")).to_contain_text("as support-bot")
    require_accessible(page)
    dialog.get_by_role("button", name="Promote").click()
    page.wait_for_url(f"**/jobs/{best_id}?tab=deliveries")
    expect(page.get_by_role("row").filter(has_text="support").filter(has_text="as support-bot")).to_be_visible()
    with transaction(world.sessions) as session:
        (delivery,) = session.scalars(select(Delivery).where(Delivery.job_id == best_id))
        assert delivery.served_model == "support-bot"


def test_a_job_of_a_group_leads_to_its_comparison(open_page: Open, world: World) -> None:
    first, second = (world.add_job(f"of-a-group-{number}", group_id="ftgroup-1") for number in (1, 2))
    page = open_page(f"/jobs/{second}")
    page.get_by_role("link", name="Compare its group").click()
    names = page.get_by_role("region", name="Results").get_by_role("link")
    expect(names).to_have_text(["of-a-group-1", "of-a-group-2"])
    expect(names.first).to_have_attribute("href", f"/jobs/{first}")


def test_a_key_that_may_not_create_jobs_sees_plans(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/variants?job={world.jobs['earlier']}", key=world.add_key(scopes=["all:read"]))
    expect(row_of(page, 1).get_by_text(re.compile("^Fits"))).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Create"))).to_have_count(0)
