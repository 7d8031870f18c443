"""The eight pictures of the pages: one real run of the bundled model on the example's tickets. `make screenshots`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.test_screens import FADED, ROOT, WRITES, settle
from tests.deadline import until
from tests.up import Service, serving

PICTURES = ROOT / "docs" / "screenshots"
EXAMPLE = ROOT / "examples" / "support-tickets"
BASE = "SmolLM2-135M-Instruct"
TRAINED_SECONDS = 1_800.0  # two minutes on two idle cores
PICTURED_STEPS = 12  # of the job that is pictured while it runs
GRADERS = [{"type": "json_fields", "name": "fields"}]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving({}) as service:
        yield service


@WRITES
@pytest.mark.timeout(7_200)
def test_write_the_pictures_of_a_real_run(open_page: Open, service: Service) -> None:
    url = str(json.loads(service.runtime.read_text())["web_url"])
    with httpx2.Client(
        base_url=f"{service.url}/v1/", headers={"Authorization": f"Bearer {service.key}"}, timeout=60, trust_env=False
    ) as api:
        files = {name: upload(api, EXAMPLE / f"{name}.jsonl") for name in ("train", "valid", "heldout")}
        first = create(api, files, "tickets-1", n_epochs=1)
        second = create(api, files, "tickets-2", n_epochs=2)
        until(lambda: read(api, second)["status"] == "succeeded", "two trainings", 2 * TRAINED_SECONDS)
        third = create(api, files, "tickets-3", n_epochs=3)
        create(api, files, "tickets-4", n_epochs=2)
        until(lambda: (read(api, third)["progress"] or {}).get("step", 0) >= PICTURED_STEPS, "steps", TRAINED_SECONDS)
        paths = {
            "jobs": "/jobs",
            "job-running": f"/jobs/{third}",
            "queue": "/queue",
            "job": f"/jobs/{second}",
            "job-evaluations": f"/jobs/{second}?tab=evaluations",
            "dataset": f"/datasets/{files['train']}",
            "compare": f"/jobs/compare?jobs={first},{second}",
            "new-job": f"/jobs/new?file={files['train']}",
        }
        for name, path in paths.items():
            picture(open_page, url, service.key, path, PICTURES / f"{name}.png")


def upload(api: httpx2.Client, path: Path) -> str:
    purpose = "evals" if path.stem == "heldout" else "fine-tune"
    answer = api.post("files", data={"purpose": purpose}, files={"file": (path.name, path.read_bytes())})
    return str(answer.raise_for_status().json()["id"])


def create(api: httpx2.Client, files: dict[str, str], suffix: str, n_epochs: int) -> str:
    body: Json = {
        "model": BASE,
        "training_file": files["train"],
        "validation_file": files["valid"],
        "suffix": suffix,
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": n_epochs}}},
        "evaluation": {"file": files["heldout"], "graders": GRADERS},
    }
    return str(api.post("fine_tuning/jobs", json=body).raise_for_status().json()["id"])


def read(api: httpx2.Client, job_id: str) -> Json:
    job: Json = api.get(f"fine_tuning/jobs/{job_id}").raise_for_status().json()
    assert job["status"] not in ("failed", "cancelled"), job["error"]
    return job


def picture(open_page: Open, url: str, key: str, path: str, target: Path) -> None:
    """What a window shows at first, with all that is loaded later."""
    page = open_page(path, key=key, url=url)
    settle(page)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    settle(page)
    page.evaluate(FADED)
    page.wait_for_timeout(500)  # the last animation of a chart
    page.screenshot(path=target)
