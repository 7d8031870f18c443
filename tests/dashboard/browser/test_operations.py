"""The queue, the project and the administration."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from app.db.engine import transaction
from app.db.ids import new_id
from app.db.jobs import checkpoints
from app.db.tables import Evaluation, Job
from tests.api_objects import EVALUATION
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.world import MODEL, World


def test_the_queue_has_workers_running_jobs_and_the_next_job(open_page: Open, world: World) -> None:
    page = open_page("/queue")
    worker = page.get_by_role("region", name="Workers").get_by_role("row").filter(has_text="NVIDIA H100")
    expect(worker).to_contain_text("80.0 GB")
    expect(worker.get_by_role("link", name="support-bot-v4")).to_be_visible()
    running = page.get_by_role("region", name="Running jobs").get_by_role("row").filter(has_text="support-bot-v4")
    expect(running).to_contain_text(re.compile(r"in \d+ (s|min)|soon"))
    waiting = page.get_by_role("region", name="Waiting jobs")
    expect(waiting.get_by_role("row").filter(has_text="sweep-lr-2")).to_contain_text(re.compile("2.*its turn"))
    waiting.get_by_role("link", name="sweep-lr-1").click()
    page.wait_for_url(f"**/jobs/{world.jobs['queued-0']}")


def test_the_queue_has_evaluations_and_old_jobs_have_their_names(open_page: Open, world: World) -> None:
    with transaction(world.sessions) as session:
        job = session.get_one(Job, world.jobs["earlier"])
        result = checkpoints.by_names(session, [job.fine_tuned_model or ""])[job.fine_tuned_model or ""]
        of_job = {"project_id": job.project_id, "job_id": job.id, "checkpoint_id": result.id}
        evaluation = Evaluation(
            id=new_id("fteval"), **of_job, file_id=world.files["held_out"], settings=EVALUATION["settings"],
            model=result.name, base_model=MODEL, step_number=result.step_number, plan=EVALUATION["plan"],
            adapter_file_ids=result.file_ids, state="queued",
        )  # fmt: skip
        session.add(evaluation)
    page = open_page("/queue")
    row = page.get_by_role("region", name="Evaluations").get_by_role("row").filter(has_text="queued")
    expect(row.get_by_role("link", name="support-bot-v2")).to_be_visible()
    with transaction(world.sessions) as session:
        session.delete(session.get_one(Evaluation, evaluation.id))
    expect(page.get_by_role("region", name="Evaluations")).to_have_count(0)


def test_the_project_has_its_targets_webhooks_keys_and_audit_log(open_page: Open) -> None:
    page = open_page("/project")
    expect(page.get_by_role("heading", name="Project default")).to_be_visible()
    target = page.get_by_role("region", name="Delivery targets").get_by_role("row").filter(has_text="production")
    expect(target).to_contain_text("http://127.0.0.1:9")
    expect(target).to_contain_text("ready")
    expect(page.get_by_text("at most the service's default", exact=True)).to_be_visible()
    delivery = page.get_by_role("region", name="Deliveries to pipeline").get_by_role("row").filter(has_text="succeeded")
    expect(delivery).to_contain_text("pending")
    expect(page.get_by_role("region", name="API keys").get_by_role("row").filter(has_text="member")).to_be_visible()
    expect(page.get_by_text("--scope all:read")).to_be_visible()
    audit = page.get_by_role("region", name="Audit log")
    expect(audit.get_by_role("cell").first).to_be_visible()  # other tests add more entries than are shown


def test_a_member_sees_no_keys_and_no_administration(open_page: Open, world: World) -> None:
    page = open_page("/project", key=world.member_key)
    expect(page.get_by_text("Usage and limits")).to_be_visible()
    expect(page.get_by_role("region", name="API keys")).to_have_count(0)
    expect(page.get_by_role("link", name="Admin")).to_have_count(0)
    page.goto(page.url.replace("/project", "/admin"))
    expect(page.get_by_text("Only for administrators")).to_be_visible()


def test_the_administration_has_the_status_storage_and_failed_jobs(open_page: Open, world: World) -> None:
    page = open_page("/admin")
    expect(page.get_by_text("Free disk space")).to_be_visible()
    check = page.get_by_role("region", name="Checks").get_by_role("row").filter(has_text="database")
    expect(check).to_contain_text("ok")
    project = page.get_by_role("region", name="Projects").get_by_role("row").filter(has_text="default")
    expect(project).to_contain_text(re.compile(r"\d [kM]B"))
    page.get_by_role("region", name="Failed jobs").get_by_role("link", name="long-context").click()
    page.wait_for_url(f"**/jobs/{world.jobs['failed']}")
