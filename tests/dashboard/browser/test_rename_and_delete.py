"""Renaming and deleting files and jobs, equal files, and base models that are added."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from app.db.engine import transaction
from app.db.tables import File
from tests import factories
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import MODEL, World, tickets_jsonl


def test_equal_files_are_shown_once_renamed_and_deleted(open_page: Open, world: World) -> None:
    content = tickets_jsonl(12, seed=77)
    with transaction(world.sessions) as session:
        project = factories.make_project(session)
        older, newer = (
            factories.make_file(session, world.storage, project, content, filename="twice.jsonl") for _ in "12"
        )
        job = factories.make_job(session, project, older, MODEL, suffix="trained-on-it")
    page = open_page("/datasets")
    row = page.get_by_role("row").filter(has_text="twice.jsonl")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("2 equal files")
    row.get_by_role("link", name="twice.jsonl").click()
    page.wait_for_url(f"**/datasets/{newer.id}")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("once.jsonl")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="once.jsonl")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("link", name="trained-on-it")).to_have_attribute("href", f"/jobs/{job.id}")
    expect(dialog.get_by_label("With 1 other file of the same content")).to_be_checked()
    dialog.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/datasets")
    expect(page.get_by_role("row").filter(has_text="support-tickets.jsonl")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="once.jsonl")).to_have_count(0)
    with transaction(world.sessions) as session:
        assert all(session.get_one(File, one.id).deleted_at for one in (older, newer))


def test_the_jobs_that_were_evaluated_with_a_file_are_named_before_it_is_deleted(open_page: Open, world: World) -> None:
    page = open_page(f"/datasets/{world.files['held_out']}")
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("link", name="<img src=x").first).to_be_visible()  # not trained or validated with it


def test_a_job_is_renamed_and_deleted(open_page: Open, world: World) -> None:
    job_id = world.add_job("to-tidy-up", steps=(1, 2))
    page = open_page(f"/jobs/{job_id}")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("tidied up")
    page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="tidied up")).to_be_visible()
    page.get_by_role("button", name="Delete job").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("div").filter(has_text=re.compile("^Checkpoints"))).to_contain_text("2")
    dialog.get_by_role("button", name="Delete job").click()
    page.wait_for_url("**/jobs")
    expect(page.get_by_role("link", name="support-bot-v3").first).to_be_visible()
    expect(page.get_by_role("link", name="tidied up")).to_have_count(0)


def test_an_unfinished_job_and_a_reader_have_no_delete(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['running']}")
    expect(page.get_by_role("button", name="Rename")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    reader = world.add_key(scopes=("all:read",))
    for path in (f"/jobs/{world.jobs['cancelled']}", f"/datasets/{world.files['tickets']}"):
        page = open_page(path, key=reader)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("Rename|Delete"))).to_have_count(0)


def test_a_base_model_is_added_beside_the_cards_that_train_it(open_page: Open, world: World) -> None:
    page = open_page("/jobs/new")
    page.get_by_role("link", name="Add a base model").click()
    page.wait_for_url("**/admin/models")
    registered = page.get_by_role("region", name="Registered").get_by_role("row").filter(has_text=MODEL)
    expect(registered).to_contain_text("8 GB card")
    expect(page.get_by_role("row").filter(has_text="Qwen3-32B")).to_contain_text("24 GB card")
    page.get_by_label("Id on the hub, or directory").fill("Qwen/Qwen3-8B")
    plan = page.get_by_role("region", name="The plan").get_by_role("row").filter(has_text="Qwen3-8B")
    expect(plan).to_contain_text("GB card")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text(re.compile("TUNERY_BASE_MODEL_PULL_DIRECTORY"))).to_be_visible()
    page.get_by_label("Source").select_option("directory")
    page.get_by_label("Id on the hub, or directory").fill("/models/Qwen3-8B")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text(re.compile("TUNERY_BASE_MODEL_DIRECTORIES"))).to_be_visible()
