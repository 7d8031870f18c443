"""From a CSV to an adapter, as a newcomer goes: all of `tunery up`, with its worker, trainer and dashboard.

The base model is a tiny one under the name of the bundled model, so that a training takes seconds.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.cli.local_stack.data_directory import LOCK_NAME, Layout
from app.cli.local_stack.first_run import BUNDLED_MODEL
from tests.dashboard.browser.conftest import Open, sign_in
from tests.tiny import make_tiny_base
from tests.up import Service, serving

CSV = "ticket,label\n" + "".join(f'"Order {n}, where is it?",shipping\n"Refund {n}!",billing\n' for n in range(10))
TRAINED_MILLISECONDS = 240_000  # two processes import torch, on a machine with other load


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    def prepare(service: Service) -> None:
        make_tiny_base(Layout(service.data).models / BUNDLED_MODEL)
        (service.data / LOCK_NAME).touch()  # marks the directory as one of Tunery

    with serving(prepare=prepare) as service:
        yield service


@pytest.mark.timeout(900)
def test_from_a_csv_to_an_answer_and_the_download(open_page: Open, service: Service, tmp_path: Path) -> None:
    url = str(json.loads(service.runtime.read_text())["web_url"])
    page = open_page("/sign-in", key=None, url=url)
    sign_in(page, url, service.key)
    upload_and_convert(page, tmp_path)
    page.get_by_role("link", name="Train").click()
    first = create(page, "first", {"Epochs": "2", "Batch size": "4"})
    watch_to_success(page)
    page.get_by_role("link", name="Clone").click()
    second = create(page, "second", {"LoRA rank": "4"})
    watch_to_success(page)
    compare(page, first, second)
    page.get_by_role("link", name="second").first.click()
    page.get_by_role("link", name="Adapter", exact=True).click()
    ask_both(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    with tarfile.open(download.value.path()) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {Path(name).name for name in archive.getnames()}
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_contain_text("You are signed out")


def upload_and_convert(page: Page, directory: Path) -> None:
    (directory / "tickets.csv").write_text(CSV)
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    page.get_by_role("link", name="Upload a dataset").click()
    page.locator("input[type=file]").set_input_files(directory / "tickets.csv")
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_label("Assistant (answer)")).to_have_value("label")
    expect(page.get_by_text("Order 0, where is it?")).to_be_visible()
    page.get_by_role("button", name="Upload only").click()
    page.wait_for_url(re.compile(r"/datasets/file-"))
    expect(page.get_by_text("Valid", exact=True)).to_be_visible()
    expect(page.get_by_role("group", name="The text as the model sees it").first.locator("mark").first).to_be_visible()


def create(page: Page, name: str, values: dict[str, str]) -> str:
    """Create the job of the form when its plan fits; the id of the job."""
    for label, value in {"Name": name, **values}.items():
        page.get_by_label(label, exact=True).fill(value)
    expect(page.get_by_text(re.compile(r"^Fits\. About "))).to_be_visible()
    page.get_by_role("button", name="Create job").click()
    page.wait_for_url(re.compile("/jobs/ftjob-"))
    return page.url.split("/jobs/")[1].split("?")[0]


def watch_to_success(page: Page) -> None:
    """The page follows the job by itself, and then has its curve and its adapter."""
    expect(page.get_by_text(re.compile(r"^Trained \d+ steps? on"))).to_be_visible(timeout=TRAINED_MILLISECONDS)
    expect(page.get_by_role("heading", level=1).get_by_text("Succeeded")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Curves of")).locator("canvas").first).to_be_visible()


def compare(page: Page, *job_ids: str) -> None:
    page.get_by_role("link", name="Jobs", exact=True).click()
    for job_id in job_ids:
        page.get_by_role("row").filter(has_text=job_id[:14]).get_by_role("checkbox").check()
    page.get_by_role("link", name="Compare 2 jobs").click()
    expect(page.get_by_role("img", name="Curves of the compared jobs").locator("canvas").first).to_be_visible()
    row = page.get_by_role("row").filter(has_text="lora.r").first
    expect(row).to_contain_text("16")
    expect(row).to_contain_text("4")


def ask_both(page: Page) -> None:
    """The only worker answers one question after the other."""
    page.get_by_label("Question").fill("Refund 3!")
    page.get_by_label("Maximum answer (tokens)").fill("12")
    page.get_by_role("button", name="Ask both").click()
    for one in ("base model", "adapter"):
        answer = page.get_by_role("region", name=f"Answer of the {one}")
        expect(answer.get_by_role("status")).to_contain_text(re.compile(r"tokens? in "), timeout=TRAINED_MILLISECONDS)
        expect(answer.locator(".t-answer")).not_to_be_empty()
