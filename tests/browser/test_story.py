"""The main job of a newcomer with a CSV, in a browser: the whole service and the bundled model."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.up import Service, serving

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

TRAINING_MILLISECONDS = 600_000
CSV = "question,answer\n" + "".join(f'"Ticket {n}: where is order {n}?","Order {n} ships today."\n' for n in range(12))


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def test_a_csv_becomes_an_adapter(open_page: Open, service: Service, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(CSV)
    page = open_page("/datasets", key=service.key, url=json.loads(service.runtime.read_text())["web_url"])
    page.locator("input[type=file]").set_input_files(tmp_path / "orders.csv")
    page.get_by_role("button", name="Convert and upload").click()
    page.wait_for_url(re.compile("/datasets/file-"))
    expect(page.get_by_text("Valid", exact=True)).to_be_visible(timeout=60_000)

    page.get_by_role("link", name="New job").first.click()
    expect(page.get_by_text(re.compile("^(Fits|Tight)"))).to_be_visible(timeout=60_000)
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Name").fill("orders")
    page.get_by_role("button", name="Create job").click()
    page.wait_for_url(re.compile("/jobs/ftjob-"))

    download_link = page.get_by_role("link", name="Adapter", exact=True)
    expect(download_link).to_be_visible(timeout=TRAINING_MILLISECONDS)
    expect(page.get_by_text("Succeeded").first).to_be_visible()
    expect(page.get_by_role("img", name="Curves of orders").locator("canvas").first).to_be_visible()
    download_link.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download", exact=True).first.click()
    with tarfile.open(download.value.path()) as archive:
        assert any(name.endswith("adapter_model.safetensors") for name in archive.getnames())
    page.get_by_label("Question").fill("Ticket 3: where is order 3?")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_role("region", name="Answer of the adapter").get_by_role("alert")).to_contain_text("deliver")
