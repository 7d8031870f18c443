"""The dashboard with 10,000 jobs and a job of 100,000 steps: seconds until a browser shows them, and processor seconds.

Processor seconds are those of each process from the request until all is quiet again: what a page starts after it is
shown, such as the curves of a list, belongs to its cost.

python -m benchmarks.dashboard
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil
from playwright.sync_api import Page, sync_playwright
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db import migrate
from app.db.engine import make_engine, transaction
from benchmarks.table import machine
from tests.dashboard.browser.conftest import CHROMIUM, FLAGS, sign_in
from tests.dashboard.browser.dashboard import dashboard
from tests.dashboard.browser.world import World, serving_world
from tests.stack import start_postgres, start_valkey

JOBS, STEPS, TIMES = 10_000, 100_000, 5
QUIET_SECONDS, QUIET_SHARE, MAX_SETTLE_SECONDS = 0.5, 0.05, 20.0  # all processes together use less than a twentieth
PARTS = {"postgres": "PostgreSQL", "chrom": "browser", "headless": "browser"}  # by the start of the process's name
SORTS = ("created_at", "name", "status", "model", "progress", "train_loss", "valid_loss", "duration")
MORE_JOBS = """
INSERT INTO jobs (id, project_id, base_model, training_file_id, spec, suffix, state, event_seq, finished_at, progress)
SELECT 'ftjob-many' || n, project_id, base_model, training_file_id, spec, 'run-' || n, 'cancelled', 1, now(),
  jsonb_build_object('step', n % 300, 'total_steps', 300)
FROM jobs, generate_series(1, :jobs) AS n WHERE id = :template
"""
MORE_STEPS = """
INSERT INTO job_events (id, project_id, job_id, seq, attempt, level, type, message, data)
SELECT 'ftevent-many' || n, project_id, id, event_seq + n, attempt, 'info', 'metrics', 'Step ' || n || '/' || :steps,
  jsonb_build_object('step', 1000 + n, 'total_steps', :steps, 'train_loss', 0.4 + exp(-3.0 * n / :steps) + random() / 9,
    'train_mean_token_accuracy', random(), 'learning_rate', 2e-4 * (1 - 1.0 * n / :steps), 'grad_norm', random(),
    'epoch', 3.0 * n / :steps, 'labelled_tokens', 300, 'num_tokens', 900 * n, 'tokens_per_second', 880 + random(),
    'eta_seconds', 1.2 * (:steps - n), 'peak_memory_bytes', 1100000000)
  || CASE WHEN n % 100 = 0 THEN jsonb_build_object('full_valid_loss', 0.5 + random() / 9) ELSE '{}' END
FROM jobs, generate_series(1, :steps) AS n WHERE id = :job_id
"""
MOVED_ON = """
UPDATE jobs SET event_seq = event_seq + :steps, progress = progress || jsonb_build_object('step', 1000 + :steps)
WHERE id = :job_id
"""


def main() -> None:
    print(f"{machine()}; a list of {JOBS:,} jobs and a job of {STEPS:,} steps")
    postgres_url, stop_postgres = start_postgres()
    valkey_url, stop_valkey = start_valkey()
    try:
        engine = make_engine(postgres_url)
        migrate.upgrade(engine)
        engine.dispose()
        with (
            tempfile.TemporaryDirectory() as directory,
            serving_world(postgres_url, valkey_url, Path(directory)) as world,
            dashboard(world.api_url) as url,
        ):
            with transaction(world.sessions) as session:
                fill(session, world)
            logging.getLogger().setLevel(logging.WARNING)
            measure(world, url)
    finally:
        stop_valkey()
        stop_postgres()


def fill(session: Session, world: World) -> None:
    job_id = world.jobs["earlier"]
    session.execute(text(MORE_JOBS), {"jobs": JOBS, "template": world.jobs["cancelled"]})
    session.execute(text(MORE_STEPS), {"steps": STEPS, "job_id": job_id})
    session.execute(text(MOVED_ON), {"steps": STEPS, "job_id": job_id})
    session.execute(text("ANALYZE"))


def measure(world: World, url: str) -> None:
    job_path = f"/jobs/{world.jobs['earlier']}"
    with httpx2.Client(base_url=f"{world.api_url}/v1/fine_tuning/", trust_env=False) as api:
        api.headers["Authorization"] = f"Bearer {world.admin_key}"
        paths = ["jobs?limit=50", "jobs?limit=50&search=run-77", f"{job_path[1:]}/metrics?max_points=2000"]
        for path in [*paths, *(f"jobs?limit=50&order_by={column}" for column in SORTS)]:
            row(f"API: {path}", lambda path=path: api.get(path).raise_for_status())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        sign_in(page, url, world.admin_key)
        row("browser: list, first row", lambda: open_page(page, f"{url}/jobs", "tbody tr a"))
        row("browser: list, searched", lambda: open_page(page, f"{url}/jobs?q=run-77", "tbody tr a"))
        row("browser: job, chart, first visit", lambda: first_visit(browser.new_page(), url, job_path, world), times=3)
        row("browser: job, chart, again", lambda: open_page(page, url + job_path, ".t-chart canvas"))
        browser.close()


def first_visit(page: Page, url: str, path: str, world: World) -> float:
    """Seconds of a new session, whose client has nothing cached."""
    sign_in(page, url, world.admin_key)
    seconds = timed(lambda: open_page(page, url + path, ".t-chart canvas"))
    page.close()
    return seconds


def open_page(page: Page, url: str, selector: str) -> None:
    page.goto(url, wait_until="commit")
    page.wait_for_selector(selector)


def row(name: str, work: Callable[[], object], times: int = TIMES) -> None:
    """Print the median and the range of the seconds, and the median processor seconds of each part.

    `work` may return its own measure.
    """
    seconds, busy = [], []
    for _ in range(times):
        before, result = processor_seconds(), []
        whole = timed(lambda result=result: result.append(work()))
        seconds.append(result[0] if isinstance(result[0], float) else whole)
        after = settled_processor_seconds()
        busy.append({part: after[part] - before.get(part, 0.0) for part in after})
    parts = {part: statistics.median(one.get(part, 0.0) for one in busy) for part in busy[-1]}
    split = ", ".join(f"{part} {used:.2f}" for part, used in parts.items() if used >= 0.005)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{name}: {statistics.median(seconds):.2f} s ({spread}); processor: {split or 'below 0.01'} s", flush=True)


def settled_processor_seconds() -> dict[str, float]:
    """The processor seconds when all processes have become quiet, or after some time."""
    deadline, last = time.monotonic() + MAX_SETTLE_SECONDS, processor_seconds()
    while time.monotonic() < deadline:
        time.sleep(QUIET_SECONDS)
        now = processor_seconds()
        if sum(now.values()) - sum(last.values()) < QUIET_SHARE * QUIET_SECONDS:
            return now
        last = now
    return last


def processor_seconds() -> dict[str, float]:
    """Of this process (the API) and of those that it started, by part, since their start."""
    this = psutil.Process()
    found = {"API": sum(this.cpu_times()[:2])}
    for process in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = process.name()
            part = next((part for start, part in PARTS.items() if name.startswith(start)), None)
            if part is None and "app.web" in process.cmdline():
                part = "dashboard"
            if part is not None:
                found[part] = found.get(part, 0.0) + sum(process.cpu_times()[:2])
    return found


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
