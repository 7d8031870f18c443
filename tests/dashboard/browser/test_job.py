"""The page of one job."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime

from playwright.sync_api import Page, expect
from sqlalchemy import text

from app.db.engine import transaction
from app.db.jobs import events
from app.db.jobs.events import append_event
from app.db.tables import Job
from app.domain.jobs.states import JobState
from tests.dashboard.browser.conftest import Open
from tests.dashboard.browser.test_screens import require_accessible
from tests.dashboard.browser.world import ANSWERS, World, append_steps


def test_a_running_job_says_what_happens_and_its_step_moves(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['running']}")
    expect(page.get_by_text(re.compile(r"^Training: step 1\d\d of 300\. About"))).to_be_visible()
    chart = page.get_by_role("img", name=re.compile("Curves of support-bot-v4"))
    expect(chart.locator("canvas").first).to_be_visible()
    with transaction(world.sessions) as session:
        job = session.get(Job, world.jobs["running"])
        assert job is not None
        step = int((job.progress or {})["step"])
        append_steps(session, job, step + 1, step + 2, 300, 2.2)
    expect(page.get_by_text(re.compile(rf"^Training: step {step + 2} of 300"))).to_be_visible()


MANY_STEPS = """
INSERT INTO job_events (id, project_id, job_id, seq, attempt, level, type, message, data)
SELECT 'ftevent-step' || n, project_id, id, event_seq + n, attempt, 'info', 'metrics', 'Step ' || n,
  jsonb_build_object('step', n, 'total_steps', :steps, 'train_loss', 1.0 / n, 'learning_rate', 0.0002)
FROM jobs, generate_series(1, :steps) AS n WHERE id = :job_id
"""


def test_a_long_job_shows_some_of_its_steps(open_page: Open, world: World) -> None:
    steps = 2_100
    with transaction(world.sessions) as session:
        job = session.get_one(Job, world.jobs["resumed"])
        session.execute(text(MANY_STEPS), {"steps": steps, "job_id": job.id})
        job.event_seq += steps
        job.progress = {"step": steps, "total_steps": steps}
    page = open_page(f"/jobs/{world.jobs['resumed']}")
    expect(page.get_by_text("2,000 of 2,100 steps")).to_be_visible()
    wait_for_chart(page, "last(options.series[0].data)[0] === 2100 && options.title.length === 2")


STEEP = """
INSERT INTO job_events (id, project_id, job_id, seq, attempt, level, type, message, data)
SELECT 'ftevent-steep' || n, project_id, id, event_seq + n, attempt, 'info', 'metrics', 'Step ' || n,
  jsonb_build_object('step', n, 'total_steps', :steps, 'train_loss', 0.5 + 7.5 * exp((1 - n) / 3.0))
FROM jobs, generate_series(1, :steps) AS n WHERE id = :job_id
"""
HIGHEST = "chart.getModel().getComponent('yAxis', 0)?.axis.scale.getExtent()[1]"  # on the axis of the losses
# The number of labels of the horizontal axes, and pairs of them with less than 6 px between them.
OVERLAPS = """
() => {
  const { chart } = getElement(Number(document.querySelector('.t-chart').id.slice(1)));
  const box = (one) => {
    const { x, y, width, height } = one.getBoundingRect();
    const place = one.transform ?? [1, 0, 0, 1, 0, 0];
    const [left, top] = [x + place[4], y + place[5]];
    return { text: one.style.text, left, top, right: left + width, bottom: top + height };
  };
  const labels = chart.getZr().storage.getDisplayList().filter((one) => one.type === "tspan" && !one.ignore).map(box);
  const numbers = labels.filter(({ text }) => /^[\\d,]+$/.test(text));
  return [numbers.length, numbers.flatMap((a, index) => numbers.slice(index + 1)
    .filter((b) => a.left < b.right + 6 && b.left < a.right + 6 && a.top < b.bottom && b.top < a.bottom)
    .map((b) => `${a.text} ${b.text}`))];
}
"""


def test_the_first_steps_do_not_flatten_the_rest_of_the_curve(open_page: Open, world: World) -> None:
    """82 steps from 8.0 to 0.5: the axis ends where only the first steps are above it, and says so."""
    job_id = world.add_job("steep", steps=[82])
    with transaction(world.sessions) as session:
        session.execute(text(STEEP), {"steps": 82, "job_id": job_id})
    page = open_page(f"/jobs/{job_id}?tab=metrics", is_narrow=True)
    wait_for_chart(page, f"{HIGHEST} > 0.5 && {HIGHEST} < 1")
    clipped = page.get_by_text(re.compile(r"^\d+ of 82 loss values above .* up to 8\.000, are not shown"))
    expect(clipped).to_be_visible()
    page.set_viewport_size({"width": 840, "height": 844})  # where "80 82" would have 5 px between them
    wait_for_chart(page, "chart.getWidth() > 700")
    count, overlaps = page.evaluate(OVERLAPS)
    assert (count >= 4, overlaps) == (True, [])
    page.get_by_label("Range of the losses").select_option("Loss: all values")
    wait_for_chart(page, f"{HIGHEST} >= 8")
    expect(clipped).to_be_hidden()
    page.get_by_label("Range of the losses").select_option("Loss: log scale")
    wait_for_chart(page, "options.yAxis[0].type === 'log'")


def test_a_button_resets_the_zoom(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=metrics")
    zoom = "options.dataZoom.map((one) => Math.round(one.start)).join()"
    wait_for_chart(page, f"{zoom} === '0,0'")
    page.evaluate(
        "getElement(Number(document.querySelector('.t-chart').id.slice(1))).chart"
        ".dispatchAction({type: 'dataZoom', start: 50, end: 100})"
    )
    wait_for_chart(page, f"{zoom} === '50,50'")
    page.get_by_role("button", name="Reset zoom").click()
    wait_for_chart(page, f"{zoom} === '0,0'")


def test_the_few_numbers_that_matter_are_large_and_the_rest_is_folded(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    figures = page.locator(".t-figures > div")
    expect(figures).to_have_text(
        [
            "Score186 of 200 right",
            re.compile("^Training time"),
            re.compile(r"^Best validation loss0\.\d{3}$"),
            "Trained tokens107,520",
        ]
    )
    size = "(one) => parseFloat(getComputedStyle(one).fontSize)"
    attempts = page.get_by_role("definition").filter(has_text=re.compile("^1$"))
    expect(attempts).to_have_count(0)
    page.get_by_text("Details", exact=True).click()
    expect(page.get_by_text("Training attempts")).to_be_visible()
    assert figures.first.locator("dd").evaluate(size) > 1.5 * attempts.first.evaluate(size)
    page.goto(page.url.replace(world.jobs["succeeded"], world.jobs["running"]))
    expect(figures.first).to_have_text(re.compile("^Remaining"))


def test_every_tab_shows_its_subject(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    names = ["Overview", "Curves", "Evaluation", "Samples", "Settings", "Log", "More"]
    expect(page.get_by_role("tablist", name="Details of the job").get_by_role("tab")).to_have_text(names)
    page.get_by_role("tab", name="Curves").click()
    expect(page.get_by_text("at step 90")).to_be_visible()
    page.wait_for_url("**?tab=metrics")
    page.get_by_role("tab", name="Log").click()
    expect(page.get_by_text("The trainer has printed no warnings or errors.")).to_be_visible()
    expect(page.get_by_role("button", name="Follow")).to_be_hidden()
    page.get_by_role("tab", name="Samples").click()
    expect(page.get_by_text(ANSWERS[1]).first).to_be_visible()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_role("row").filter(has_text="n_epochs")).to_contain_text("auto")
    expect(page.get_by_role("row").filter(has_text="lora.r").first).to_contain_text("16")
    expect(page.get_by_text('"rank": 16')).to_be_visible()
    page.get_by_role("tab", name="Evaluation").click()
    row = page.get_by_role("row").filter(has_text="label_accuracy")
    expect(row).to_contain_text(re.compile(r"0\.410.*0\.930.*\+0\.520"))
    expect(page.get_by_text("The adapter may be delivered")).to_be_visible()
    page.get_by_role("tab", name="More").click()
    expect(page.get_by_text("The job has successfully completed")).to_be_visible()
    page.wait_for_url("**?tab=events")
    page.get_by_role("tab", name="Attempts").click()
    expect(page.get_by_role("row").filter(has_text="Training").filter(has_text="finished")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^Attempt 1: finished, "))).to_be_visible()
    expect(page.locator(".t-track .t-span")).to_have_count(2)
    page.get_by_role("tab", name="Checkpoints").click()
    expect(page.get_by_role("region", name="Checkpoints").get_by_role("link", name="Download").first).to_be_visible()
    page.get_by_role("tab", name="Deliveries").click()
    expect(page.get_by_role("row").filter(has_text="staging")).to_contain_text("serves what was trained")
    expect(page.get_by_role("row").filter(has_text="production")).to_contain_text("serves the base model")
    expect(page.get_by_role("row").filter(has_text="vLLM")).to_contain_text("--enable-lora")


def test_a_job_opens_with_the_result_and_its_rows(open_page: Open, world: World) -> None:
    """The numbers are those of the rows behind them: 186 and 82 of 200 are right, 14 got worse or are still wrong."""
    page = open_page(f"/jobs/{world.jobs['succeeded']}")
    expect(page.locator(".t-headline")).to_contain_text(re.compile("^186 of 200 held-out rows right.* 82.* 52 points"))
    matrix = page.get_by_role("region", name="Confusion matrix")
    expect(matrix.get_by_role("row").nth(1)).to_contain_text(re.compile("billing.*94.*6"))
    page.get_by_role("tab", name="Base model").click()
    expect(matrix.get_by_role("row").nth(1)).to_contain_text(re.compile("billing.*40.*12.*48"))
    rows = page.get_by_role("region", name="Rows of the evaluation")
    expect(rows.locator("tbody tr")).to_have_count(10)
    page.get_by_role("button", name="Show more rows").click()
    expect(rows.locator("tbody tr")).to_have_count(20)
    page.get_by_label("Rows shown").select_option("Still wrong")
    expect(rows.locator("tbody tr")).to_have_count(8)
    expect(rows.locator("tbody tr").first).to_contain_text("0 → 0")
    page.get_by_label("Rows shown").select_option("Got worse")
    expect(rows.locator("tbody tr")).to_have_count(6)
    expect(rows.locator("tbody tr").first).to_contain_text(re.compile("Got worse.*shipping.*billing.*1 → 0"))
    expect(page.get_by_role("button", name="Show more rows")).to_be_hidden()
    rows.get_by_role("button", name="Open Line 1", exact=True).click()
    opened = page.get_by_role("group", name="Row of line 1")
    for shown in ("Name the topic.", "Ticket 1: where is my order?", "expected answer", "shipping"):
        expect(opened.get_by_text(shown, exact=True)).to_be_visible()
    require_accessible(page)
    opened.get_by_role("button", name="Close").click()
    expect(opened).to_have_count(0)


def test_scores_between_0_and_1_are_shown_as_a_distribution(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['hostile']}")
    expect(page.locator(".t-headline")).to_contain_text("Mean score of similar on 200 held-out rows: 0.930")
    parts = page.get_by_role("region", name="Distribution of scores").locator("tbody tr")
    expect(parts).to_have_count(10)
    expect(parts.first).to_contain_text(re.compile("0.9 to 1.*200.*73"))
    expect(parts.last).to_contain_text(re.compile("0 to 0.1.*0.*118"))
    field = page.get_by_role("region", name="Right fields").locator("tbody tr")
    expect(field).to_have_text(re.compile("item.*200.*41 %.*100 %"))
    expect(page.get_by_text("0 shown")).to_be_visible()


def test_a_finished_job_says_what_can_be_done_with_it(open_page: Open, world: World) -> None:
    job_id = world.jobs["earlier"]  # without an evaluation
    page = open_page(f"/jobs/{job_id}", is_narrow=True)
    for name in ("Try it", "Evaluate", "Download", "Deliver"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_in_viewport()
    expect(page.get_by_label("Question")).to_be_visible()
    ways = page.get_by_role("tablist", name="What now")
    commands = {"Evaluate": "tunery eval", "Download": "tunery adapters download", "Deliver": "tunery jobs deliver"}
    for name, command in commands.items():
        ways.get_by_role("tab", name=name).click()
        expect(page.get_by_text(re.compile(f"^{command} {job_id}"))).to_be_visible()
        expect(page.get_by_text(re.compile("^from openai import OpenAI"))).to_be_visible()
    require_accessible(page)
    page.get_by_role("link", name="Evaluate", exact=True).click()
    expect(page.get_by_role("button", name="New evaluation")).to_be_visible()


BELOW_THE_HEADER = """() => {
    const header = document.querySelector("header")?.getBoundingClientRect();
    const heading = document.querySelector("#what-now h2")?.getBoundingClientRect();
    return header && heading && header.bottom <= heading.top && heading.bottom <= innerHeight;
}"""


def test_a_link_to_a_part_of_the_page_shows_its_heading_below_the_header(open_page: Open, world: World) -> None:
    path = f"/jobs/{world.jobs['succeeded']}"
    page = open_page(path)
    for width, tab in ((1440, ""), (390, ""), (390, "?tab=settings")):
        page.set_viewport_size({"width": width, "height": 300})
        if tab:
            page.goto(page.url.split("/jobs/")[0] + path + tab)
        page.get_by_role("link", name="Try it", exact=True).click()
        page.wait_for_function(BELOW_THE_HEADER)


def test_the_modules_of_the_chart_are_requested_with_the_page(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=metrics")
    found = page.evaluate(
        "Promise.all([...document.querySelectorAll('link[rel=modulepreload]')]"
        ".map(async (link) => [link.pathname ?? new URL(link.href).pathname, (await fetch(link.href)).status]))"
    )
    assert {status for _, status in found} == {200}
    assert sum("/esm/" in path for path, _ in found) == 2  # the entry and ECharts itself


def test_the_metrics_can_be_downloaded_as_csv_and_png(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=metrics")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [rows[0]["step"], rows[-1]["step"]] == ["1", "120"]
    expect(page.locator(".t-chart canvas").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == f"{world.jobs['succeeded']}.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_the_controls_change_the_axes_and_the_smoothing_and_one_cursor_crosses_all_curves(
    open_page: Open, world: World
) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=metrics")
    expect(page.locator(".t-chart canvas").first).to_be_visible()
    page.get_by_label("Horizontal axis").select_option("Tokens")
    wait_for_chart(page, "last(options.xAxis).name === 'Tokens'")
    page.get_by_label("Horizontal axis").select_option("Training time (s)")
    wait_for_chart(page, "last(options.xAxis).name === 'Training time (s)'")
    page.get_by_label("Smoothing").select_option("Very smooth")
    wait_for_chart(page, "options.series.some((one) => one.name === 'Train loss (raw)')")
    page.get_by_label("Range of the losses").select_option("Loss: log scale")
    wait_for_chart(page, "options.yAxis[0].type === 'log' && options.yAxis[1].type === 'value'")
    wait_for_chart(page, "options.axisPointer[0].link[0].xAxisIndex === 'all'")
    wait_for_chart(page, "options.series.flatMap((one) => one.markPoint?.data ?? []).length === 1")


def test_the_log_follows_and_can_be_searched_and_downloaded(open_page: Open, world: World) -> None:
    with transaction(world.sessions) as session:
        job = session.get_one(Job, world.jobs["running"])
        events.put_log(session, job.id, job.project_id, job.attempt, "step 1 loss 2.1\nwarning: slow disk\n", 0)
    page = open_page(f"/jobs/{world.jobs['running']}?tab=log")
    text = page.get_by_label("Log of the trainer")
    expect(text).to_contain_text("warning: slow disk")
    page.get_by_role("button", name="Following", pressed=True).click()
    expect(page.get_by_role("button", name="Follow", exact=True, pressed=False)).to_be_visible()
    page.get_by_label("Search the log").fill("SLOW")
    expect(text).not_to_contain_text("step 1")
    expect(text).to_contain_text("warning: slow disk")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert "slow disk" in download.value.path().read_text()


def test_the_log_of_each_training_can_be_chosen_and_downloaded(open_page: Open, world: World) -> None:
    """The check of the files is none of the attempts, as in the header and on the tab Attempts."""
    page = open_page(f"/jobs/{world.jobs['resumed']}?tab=log")
    text = page.get_by_label("Log of the trainer")
    expect(text).to_have_text("the second training")
    expect(page.get_by_label("Attempt").locator("option")).to_have_text(["Last attempt", "Attempt 2", "Attempt 1"])
    page.get_by_label("Attempt").select_option("Attempt 1")
    expect(text).to_have_text("the first training")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.path().read_text() == "the first training\n"
    assert download.value.suggested_filename.endswith("-log-attempt-1.txt")
    page.get_by_role("tab", name="More").click()
    page.get_by_role("tab", name="Attempts").click()
    expect(page.get_by_role("row").filter(has_text="Check of the files")).to_contain_text("–")
    expect(page.get_by_text(re.compile("^Attempt 2: "))).to_be_visible()


def test_curves_take_the_colours_of_another_mode(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['succeeded']}?tab=metrics")
    expect(page.locator(".t-chart canvas").first).to_be_visible()
    colour = "options.xAxis[0].axisLabel.color === getComputedStyle(document.body).getPropertyValue('--muted').trim()"
    for theme in ("dark", "light"):
        page.get_by_role("button", name="Switch between light and dark").click()
        expect(page.locator(f"body.body--{theme}")).to_have_count(1)
        wait_for_chart(page, colour)
    page.emulate_media(color_scheme="dark")
    page.reload()
    expect(page.locator("body.body--light")).to_have_count(1)  # the choice is kept
    page.context.clear_cookies(name="tunery_theme")
    page.reload()
    expect(page.locator("body.body--dark")).to_have_count(1)
    wait_for_chart(page, colour)


def wait_for_chart(page: Page, condition: str) -> None:
    """Wait until the options of the chart, as ECharts has them, fulfil a condition in JavaScript."""
    page.wait_for_function(
        "() => { const element = document.querySelector('.t-chart'), last = (list) => list[list.length - 1];"
        " const { chart } = getElement(Number(element.id.slice(1)));"
        f" const options = chart.getOption(); return {condition}; }}"
    )


def test_a_failed_job_has_its_cause_its_remedy_and_a_repaired_form(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/{world.jobs['failed']}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("do not fit into memory")
    expect(alert).to_contain_text("Change hyperparameters.context_length")
    page.get_by_role("link", name="Create a repaired job").click()
    expect(page.get_by_text("context length: 512 → 256 tokens")).to_be_visible()
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Context length")).to_have_value("256")
    expect(page.get_by_label("Batch size")).to_have_value("8")


def test_an_interrupted_job_has_the_reason_in_view(open_page: Open, world: World) -> None:
    stopped = {"state": JobState.QUEUED, "train_attempts": 1, "started_at": datetime.now(UTC), "event_seq": 2}
    job_id = world.add_job("interrupted", progress={"step": 3, "total_steps": 9}, **stopped)
    with transaction(world.sessions) as session:
        job = session.get_one(Job, job_id)
        append_event(session, job, "The trainer sent no records for too long", "warn", data={"reason": "stalled"})
    page = open_page(f"/jobs/{job_id}")
    expect(page.get_by_text("Interrupted at step 3; it continues by itself.")).to_be_visible()
    expect(page.get_by_text("The trainer sent no records for too long")).to_be_visible()
    with transaction(world.sessions) as session:
        job = session.get_one(Job, job_id)
        job.state, job.event_seq = JobState.PAUSED, 3
        session.flush()
        append_event(session, job, "The job was paused", data={"reason": "paused"})
    expect(page.get_by_text("Paused at step 3.")).to_be_visible()
    expect(page.get_by_text("The trainer sent no records for too long")).to_have_count(0)


def test_an_unknown_job_is_named(open_page: Open) -> None:
    page = open_page("/jobs/ftjob-000000000000000000000000")
    expect(page.get_by_role("alert")).to_contain_text("ftjob-000000000000000000000000")


def test_a_comparison_names_the_files_that_differ(open_page: Open, world: World) -> None:
    jobs = [world.add_job(f"of-a-file-{number}") for number in (1, 2)]  # files of one name
    with transaction(world.sessions) as session:
        files = [session.get_one(Job, one).training_file_id for one in jobs]
    page = open_page(f"/jobs/compare?jobs={','.join(jobs)}")
    row = page.get_by_role("region", name="Settings that differ").get_by_role("row").filter(has_text="training_file")
    expect(row).to_contain_text(re.compile(".*".join(rf"train\.jsonl \({one[:14]}\)" for one in files)))


def test_a_comparison_follows_a_running_job(open_page: Open, world: World) -> None:
    page = open_page(f"/jobs/compare?jobs={world.jobs['running']},{world.jobs['earlier']}")
    row = page.get_by_role("region", name="Results").get_by_role("row").filter(has_text="support-bot-v4")
    expect(row).to_contain_text("of 300 steps")
    differing = page.get_by_role("region", name="Settings that differ").get_by_role("row")
    expect(differing.filter(has_text="lora.r").first).to_contain_text(re.compile("16.*8"))
    expect(differing.filter(has_text="batch_size")).to_have_count(0)
    expect(page.locator(".t-chart canvas").first).to_be_visible()
    with transaction(world.sessions) as session:
        job = session.get_one(Job, world.jobs["running"])
        step = int((job.progress or {})["step"])
        append_steps(session, job, step + 1, step + 2, 300, 2.2)
    expect(row).to_contain_text(f"{step + 2} of 300 steps")
    wait_for_chart(page, f"last(options.series[0].data)[0] === {step + 2}")
