"""What breaks beside a page: the API, the network, the disk, and the process that knows the session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from app.db.engine import transaction
from app.db.tables import Job
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.dashboard import dashboard
from tests.dashboard.browser.link import Link, link
from tests.dashboard.browser.world import World, tickets_jsonl
from tests.full_disk import SmallDisk, small_disk

MEGABYTE = 1 << 20
PROGRESS = {"step": 3, "total_steps": 9, "epoch": 1.0, "tokens_per_second": 90.0, "eta_seconds": 60.0}
NO_LEASE = {"lease_owner": None, "lease_expires_at": None}
SLOW = {"offline": False, "latency": 400, "downloadThroughput": 60_000, "uploadThroughput": 60_000}


@pytest.fixture(scope="module")
def api_link(world: World) -> Iterator[Link]:
    with link(int(urlsplit(world.api_url).port or 0)) as one:
        yield one


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "small", 8 * MEGABYTE) as one:
        yield one


@pytest.fixture(scope="module")
def other_url(api_link: Link) -> Iterator[str]:
    """A second process of the dashboard, behind the link."""
    with dashboard(api_link.url) as url:
        yield url


@pytest.fixture
def small_url(world: World, disk: SmallDisk) -> Iterator[str]:
    """A process of the dashboard with its temporary files on the small disk."""
    with dashboard(world.api_url, {"TMPDIR": str(disk.path)}) as url:
        yield url


def test_a_page_continues_by_itself_after_a_restart_of_the_api(
    open_page: Open, world: World, api_link: Link, other_url: str
) -> None:
    page = open_page(f"/jobs/{world.jobs['running']}", url=other_url)  # longer than the window
    expect(page.locator(".t-chart canvas").first).to_be_visible()
    with api_link.cut():
        expect(page.get_by_role("alert")).to_contain_text("The API does not answer", timeout=60_000)
        expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("alert")).to_have_count(0, timeout=60_000)


def test_a_dead_api_is_named_with_a_button_to_try_again(
    open_page: Open, world: World, api_link: Link, other_url: str
) -> None:
    page = open_page("/datasets", url=other_url)
    with api_link.cut():
        page.goto(f"{other_url}/jobs/{world.jobs['succeeded']}")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        assert "Traceback" not in page.content()
    page.get_by_role("button", name="Try again").click()  # the session has stayed
    expect(page.get_by_role("heading", name=re.compile("support-bot-v3"))).to_be_visible()


def test_a_filter_without_an_answer_is_named_in_view(open_page: Open, api_link: Link, other_url: str) -> None:
    page = open_page("/jobs", url=other_url)
    expect(page.get_by_role("link", name="support-bot-v3")).to_be_visible()
    with api_link.cut():
        page.get_by_label("Status").select_option("failed")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        expect(page.get_by_role("alert")).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Close").click()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_half_filled_form_is_kept_and_planned_again(
    open_page: Open, world: World, api_link: Link, other_url: str
) -> None:
    page = open_page(f"/jobs/new?file={world.files['tickets']}", url=other_url)
    expect(page.get_by_text(re.compile(r"^Fits\. About "))).to_be_visible()
    with api_link.cut():
        page.get_by_label("Epochs").fill("2")
        expect(page.get_by_role("alert")).to_contain_text("There is no plan")
        page.get_by_label("Name").fill("kept")
        page.get_by_role("button", name="Create job").click()
        expect(page.get_by_role("alert").filter(has_text="The job was not created")).to_be_visible()
    page.get_by_role("button", name="Plan again").click()
    expect(page.get_by_text(re.compile(r"^Fits\. About "))).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("kept")
    expect(page.get_by_label("Epochs")).to_have_value("2")


def test_a_pause_is_shown_from_the_press_until_the_job_is_paused(
    open_page: Open, world: World, api_link: Link, other_url: str
) -> None:
    job_id = running_job(world, "to-pause")
    page = open_page(f"/jobs/{job_id}", url=other_url)
    expect(page.get_by_role("heading", name="Training")).to_be_visible()
    with api_link.held():
        page.get_by_role("button", name="Pause").click()
        expect_waiting(page, "Pause")
    expect(page.get_by_text("Pausing: the trainer finishes its current step")).to_be_visible()
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    with transaction(world.sessions) as session:
        session.execute(update(Job).where(Job.id == job_id).values(state="paused", **NO_LEASE))
    expect(page.get_by_text("Paused at step 3.")).to_be_visible()
    with api_link.held():
        page.get_by_role("button", name="Resume").click()
        expect_waiting(page, "Resume")
    expect(page.get_by_text("The files are valid.")).to_be_visible()


def test_a_cancel_is_shown_in_its_dialog_which_no_step_of_the_job_closes(
    open_page: Open, world: World, api_link: Link, other_url: str
) -> None:
    job_id = running_job(world, "to-cancel-slowly")
    page = open_page(f"/jobs/{job_id}", url=other_url)
    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Cancel job").click()
    expect(dialog).to_be_visible()
    with transaction(world.sessions) as session:
        session.execute(update(Job).where(Job.id == job_id).values(progress=PROGRESS | {"step": 4}))
    expect(page.get_by_text(re.compile("step 4 of 9"))).to_be_visible()
    with api_link.held():
        dialog.get_by_role("button", name="Cancel job").click()
        expect_waiting(page, "Cancel job")
    expect(page.get_by_text("Cancelled after 4 steps.")).to_be_visible()
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel job")).to_have_count(0)


def running_job(world: World, suffix: str) -> str:
    """A job at step 3 of 9, which no worker has."""
    now = datetime.now(UTC)
    job_id = world.add_job(suffix, state="queued")
    with transaction(world.sessions) as session:
        lease = {"lease_owner": "worker", "lease_expires_at": now + timedelta(days=1)}
        values = {"state": "running", "phase": "training", "started_at": now, "progress": PROGRESS}
        session.execute(update(Job).where(Job.id == job_id).values(**values, **lease))
    return job_id


def expect_waiting(page: Page, label: str) -> None:
    button = page.locator("button[aria-busy=true]", has_text=label)
    expect(button).to_be_visible()
    page.wait_for_function("(one) => getComputedStyle(one, '::after').opacity === '1'", arg=button.element_handle())


def test_a_full_disk_is_named_and_the_upload_continues_when_there_is_space(
    open_page: Open, disk: SmallDisk, small_url: str, tmp_path: Path
) -> None:
    rows = "".join(f"question {number};{'answer ' * 20}{number}\n" for number in range(20_000))
    (tmp_path / "table.csv").write_text(f"question;answer\n{rows}")
    page = open_page("/datasets", url=small_url)
    disk.fill()
    page.locator("input[type=file]").set_input_files(tmp_path / "table.csv")
    expect(page.get_by_text("The dashboard's disk is full")).to_be_visible()
    disk.empty()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_url(re.compile("/datasets/convert/table-"))
    expect(page.get_by_label("User (question)")).to_have_value("question")


def test_on_a_slow_network_pages_work_and_an_upload_shows_its_progress(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "slow.jsonl").write_bytes(tickets_jsonl(800))
    page = open_page("/datasets")
    throttle(page)
    page.locator("input[type=file]").set_input_files(tmp_path / "slow.jsonl")
    expect(page.get_by_role("progressbar").first).to_be_visible()
    page.wait_for_url(re.compile(r"/datasets/file-"), timeout=60_000)
    expect(page.get_by_text("Valid", exact=True)).to_be_visible(timeout=60_000)


def throttle(page: Page) -> None:
    """60 kB/s with 400 ms for each round trip."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", SLOW)
