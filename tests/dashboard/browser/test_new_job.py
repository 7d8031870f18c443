"""The form of a new job with its live plan."""

from __future__ import annotations

import re

import httpx2
from playwright.sync_api import expect

from app.db.engine import transaction
from app.db.tables import Job
from tests.dashboard.browser.conftest import WIDE, Open
from tests.dashboard.browser.world import World
from tests.factories import make_file, make_project


def test_the_plan_and_the_commands_follow_the_fields_and_the_job_is_created(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/new?file={world.files['tickets']}")
    expect(page.get_by_text(re.compile(r"^Fits\. About .+ on NVIDIA H100"))).to_be_visible()
    expect(page.get_by_text("There is no validation file")).to_be_visible()
    details = page.get_by_text(re.compile(r"^\d\.\d\d GB of 80\.00 GB, with packed batches"))
    expect(details).to_be_hidden()
    page.get_by_text("Details of the plan").click()
    expect(details).to_be_visible()
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("LoRA rank").fill("8")
    expect(page.get_by_text('"n_epochs": 2')).to_be_visible()
    expect(page.get_by_role("status")).to_have_count(0)  # of a plan that is being made
    expect(details).to_be_visible()
    page.get_by_role("tab", name="Command line").click()
    expect(page.get_by_text("--set lora.r=8")).to_be_visible()
    page.get_by_label("Name").fill("made-in-a-browser")
    page.get_by_role("button", name="Create job").click()
    page.wait_for_url(re.compile("/jobs/ftjob-"))
    expect(page.get_by_role("heading", name=re.compile("made-in-a-browser"))).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_text("n_epochs", exact=True)).to_be_visible()


def test_the_plan_is_above_the_button_on_a_phone_and_beside_the_fields_on_a_screen(
    open_page: Open, world: World
) -> None:
    page = open_page(f"/jobs/new?file={world.files['tickets']}", is_narrow=True)
    verdict = page.get_by_text(re.compile(r"^Fits\. About "))
    create = page.get_by_role("button", name="Create job")
    top, bottom = (box["y"] for each in (verdict, create) if (box := each.bounding_box()))
    assert top < bottom
    page.set_viewport_size(WIDE)
    expect(verdict).to_be_in_viewport()
    page.get_by_text("Details of the plan").click()
    expect(page.get_by_text("Longest example")).to_be_visible()
    expect(create).to_be_in_viewport()  # below the fields, however long the other column is


def test_a_double_click_creates_one_job(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/new?file={world.files['tickets']}")
    page.get_by_label("Name").fill("clicked-twice")
    page.get_by_role("button", name="Create job").dblclick()
    page.wait_for_url(re.compile("/jobs/ftjob-"))
    page.goto(f"{page.url.split('/jobs/')[0]}/jobs?q=clicked-twice")
    expect(page.get_by_text("1 job shown")).to_be_visible()


def test_a_wrong_value_is_marked_and_the_job_can_be_created_afterwards(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/new?file={world.files['tickets']}")
    page.get_by_label("Epochs").fill("many")
    expect(page.get_by_text("'many' is not a whole number.")).to_be_visible()
    page.get_by_label("Epochs").fill("99")
    expect(page.get_by_role("alert")).to_contain_text("n_epochs")
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Learning rate").fill("nan")
    page.get_by_role("button", name="Create job").click()
    expect(page.get_by_text("'nan' is not a number.")).to_be_visible()
    page.get_by_label("Learning rate").fill("1e-4")
    page.get_by_role("button", name="Create job").click()
    page.wait_for_url(re.compile("/jobs/ftjob-"))


def test_a_clone_names_its_deleted_file(open_page: Open, world: World) -> None:
    job_id = world.add_job("without-its-file", steps=[1])
    with transaction(world.sessions) as session:
        file_id = session.get_one(Job, job_id).training_file_id
    with httpx2.Client(headers={"Authorization": f"Bearer {world.admin_key}"}, trust_env=False) as api:
        api.delete(f"{world.api_url}/v1/files/{file_id}").raise_for_status()
    page = open_page(f"/jobs/new?clone={job_id}")
    expect(page.get_by_text("The training file was deleted")).to_be_visible()
    expect(page.get_by_label("Training file").locator("option:checked")).to_have_text("Choose a file")


def test_the_evaluation_of_the_original_is_shown_in_words(open_page: Open, world: World) -> None:
    file = world.files["held_out"]
    evaluation = {"file": file, "graders": [{"type": "label_accuracy", "name": "topic"}], "max_new_tokens": 64}
    job_id = world.add_job("evaluated", request={"evaluation": evaluation})
    text = f"Held-out rows: held-out.jsonl ({file[:14]}); graders: topic (label accuracy); max new tokens: 64"
    for path in (f"/jobs/new?clone={job_id}", f"/jobs/{job_id}?tab=settings"):
        expect(open_page(path).get_by_text(text)).to_be_visible()


def test_an_id_that_is_none_is_named(open_page: Open) -> None:
    page = open_page("/jobs/new?clone=../../models")
    expect(page.get_by_role("alert")).to_contain_text("models")


def test_without_a_file_the_form_leads_to_the_upload(open_page: Open, world: World) -> None:
    page = open_page("/jobs/new", key=world.add_key("without files"))
    page.get_by_role("link", name="Upload a dataset").click()
    expect(page.get_by_role("button", name="Choose files")).to_be_visible()


def test_a_clone_has_the_settings_of_its_original(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/new?clone={world.jobs['earlier']}")
    expect(page.get_by_label("LoRA rank")).to_have_value("8")
    expect(page.get_by_label("Name")).to_have_value("support-bot-v2")
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Seed")).to_have_value("7")
    expect(page.get_by_label("More hyperparameters")).to_have_value(re.compile('"warmup_ratio": 0.03'))
    expect(page.get_by_text('"target_modules": [')).to_be_visible()
    page.get_by_label("Keep the other settings of the original").uncheck()
    expect(page.get_by_text('"r": 8')).to_be_visible()
    expect(page.get_by_text('"target_modules": [')).to_have_count(0)


def test_the_quantization_of_the_original_has_its_own_field(open_page: Open, world: World) -> None:
    """Without the other settings, it is still the one that the field shows."""
    job_id = world.add_job("four-bits", body={"quantization": {"bits": 4, "type": "fp4"}})
    page = open_page(f"/jobs/new?clone={job_id}")
    expect(page.get_by_text('"type": "fp4"')).to_be_visible()
    page.get_by_label("Keep the other settings of the original").uncheck()
    expect(page.get_by_text('"deliver_to"')).to_have_count(0)
    expect(page.get_by_text('"type": "fp4"')).to_be_visible()


class TestKeptEntries:
    """What was entered is there again when the page is, for keys of the same project."""

    def test_entries_are_kept_after_the_end_of_a_session(self, open_page: Open, world: World) -> None:
        first, second = world.add_key("with entries"), world.add_key("with entries")
        with transaction(world.sessions) as session:
            file_id = make_file(session, world.storage, make_project(session, "with entries")).id
        page = open_page(f"/jobs/new?file={file_id}", key=first)
        expect(page.get_by_text(re.compile(r"^Fits\. About .+ on NVIDIA H100"))).to_be_visible()
        page.get_by_label("Name").fill("kept")
        page.get_by_text("More settings").click()
        page.get_by_label("Quantization").select_option("16")
        expect(page.get_by_text('"quantization": null')).to_be_visible()
        page.context.clear_cookies()
        page.reload()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.get_by_label("API key").fill(second)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text('"suffix": "kept"')).to_be_visible()
        expect(page.get_by_text('"quantization": null')).to_be_visible()
        expect(page.get_by_label("Quantization")).to_have_value("16")
        assert second not in page.evaluate("JSON.stringify(sessionStorage)")

    def test_entries_are_kept_after_back_but_not_on_a_new_visit(self, open_page: Open) -> None:
        page = open_page("/jobs/new")
        page.get_by_label("Name").fill("kept")
        page.get_by_role("link", name="Datasets").click()
        page.get_by_role("heading", name="Datasets").wait_for()
        page.go_back()
        expect(page.get_by_label("Name")).to_have_value("kept")
        page.goto(page.url)
        expect(page.get_by_label("Name")).to_have_value("")

    def test_entries_are_kept_after_a_reload_of_a_changed_address(self, open_page: Open, world: World) -> None:
        page = open_page(f"/datasets/{world.files['tickets']}")
        page.get_by_label("Validation file").select_option(world.files["held_out"])
        page.wait_for_url("**?model=**")
        page.reload()
        expect(page.get_by_label("Validation file")).to_have_value(world.files["held_out"])

    def test_entries_are_not_kept_for_another_project_or_after_signing_out(self, open_page: Open, world: World) -> None:
        other = world.add_key("of others")
        page = open_page("/jobs/new")
        page.get_by_label("Name").fill("confidential")
        page.context.clear_cookies()
        page.reload()
        page.get_by_label("API key").fill(other)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="New job")).to_be_visible()
        page.wait_for_function("!JSON.stringify(sessionStorage).includes('confidential')")
        expect(page.get_by_label("Name")).to_have_value("")
        page.get_by_label("Name").fill("confidential")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert page.evaluate("sessionStorage.forms") is None
