"""Two to five jobs: curves overlaid, and only the settings and results that differ."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

from app.domain.jobs.states import training_seconds
from app.web.api_client import ApiClient
from app.web.components.data_table import DataTable, Row, column
from app.web.components.elements import card, chart, link, note, tag
from app.web.components.forms import checkbox, filter_select
from app.web.formatting import clean, duration, loss
from app.web.frame import View, refresh_live, screen
from app.web.pages.jobs import metrics_chart, wording
from app.web.pages.jobs.metrics_chart import AXES, SMOOTHING, ChartedJob, Look

MAX_POINTS = 1_000
MIN_JOBS, MAX_JOBS = 2, 5
REFRESH_SECONDS = 3.0
RESULT_COLUMNS = (
    column("name", "Job", lead=True),
    column("status", "Status"),
    column("train", "Train loss", "number"),
    column("valid", "Best valid. loss", "number"),
    column("steps", "Progress", "number"),
    column("time", "Training time", "number"),
)

Json = dict[str, Any]


@screen("/jobs/compare", "Compare jobs", "jobs")
async def build(view: View) -> None:
    tag("h1", "Compare jobs")
    job_ids = list(dict.fromkeys(quote(one, safe="") for one in view.query("jobs").split(",") if one))
    if not MIN_JOBS <= len(job_ids) <= MAX_JOBS:
        note("Choose two to five jobs", "Select them in the list of jobs, then press Compare.", "warn")
        link("Jobs", "/jobs", "t-button")
        return
    metrics_chart.request_charts_early()
    comparison = _Comparison(view.api, job_ids)
    await comparison.refresh()
    _show_differences(comparison.jobs)
    refresh_live(view, comparison.refresh, interval_seconds=REFRESH_SECONDS)


def distinct_names(jobs: list[Json]) -> list[str]:
    """A clone has the name of its original: then the short ids tell them apart."""
    names = [wording.name(job) for job in jobs]
    return [
        f"{name} ({wording.short_id(job['id'])})" if names.count(name) > 1 else name
        for name, job in zip(names, jobs, strict=True)
    ]


class _Comparison:
    """Results and curves, which follow the jobs."""

    def __init__(self, api: ApiClient, job_ids: list[str]) -> None:
        self._api = api
        self._job_ids = job_ids
        self.jobs: list[Json] = []
        self._rows: dict[str, list[Json]] = {}  # of the metrics, by job
        self._drawn_at = float("-inf")
        self._charted_jobs: list[ChartedJob] = []
        self._is_log = False
        self._results = DataTable("Results", RESULT_COLUMNS)
        self._empty = note("No metrics yet", "None of these jobs has trained a step.")
        with card("Curves") as self._card:
            with tag("div", classes="t-filters"):
                self._axis = filter_select("Horizontal axis", AXES, "step", self._draw)
                self._smoothing = filter_select("Smoothing", SMOOTHING, "0.6", self._draw)
                checkbox("Log scale", False, self._set_log)
                tag("span", classes="t-grow")
                downloads = tag("div", classes="t-actions")
            self._chart = chart({}, "Curves of the compared jobs")
            with downloads:
                metrics_chart.png_button(self._chart, "compared-jobs.png")

    async def refresh(self) -> None:
        """Request the metrics of the jobs that have moved on; a running one sends all points again, so not often."""
        jobs = await asyncio.gather(*(self._api.get(f"fine_tuning/jobs/{one}") for one in self._job_ids))
        moved = [job for job in jobs if job not in self.jobs]
        is_early = time.monotonic() - self._drawn_at < REFRESH_SECONDS
        if not moved or (is_early and any(job["status"] in wording.UNFINISHED for job in moved)):
            return
        metrics = await asyncio.gather(
            *(self._api.get(f"fine_tuning/jobs/{job['id']}/metrics", max_points=MAX_POINTS) for job in moved)
        )
        self._rows |= {job["id"]: one["data"] for job, one in zip(moved, metrics, strict=True)}
        self.jobs = jobs
        charted = [
            ChartedJob(name, self._rows[job["id"]]) for name, job in zip(distinct_names(jobs), jobs, strict=True)
        ]
        self._results.set_rows([_result_row(job, one) for job, one in zip(jobs, charted, strict=True)])
        self._charted_jobs = [one for one in charted if one.rows]
        self._empty.set_visibility(not self._charted_jobs)
        self._card.set_visibility(bool(self._charted_jobs))
        self._draw()

    def _set_log(self, is_log: bool) -> None:
        self._is_log = is_log
        self._draw()

    def _draw(self) -> None:
        look = Look(self._axis.value, self._is_log, float(self._smoothing.value or 0))
        self._chart.style(f"height: {metrics_chart.height_px(self._charted_jobs)}px")
        self._chart.options.clear()
        self._chart.options.update(metrics_chart.options(self._charted_jobs, look))
        self._chart.update()
        self._drawn_at = time.monotonic()


def _result_row(job: Json, charted: ChartedJob) -> Row:
    best = metrics_chart.best_validation(charted.rows)
    losses = [row["train_loss"] for row in charted.rows if row.get("train_loss") is not None]
    return {
        "id": job["id"],
        "label": charted.name,
        "name": {"text": charted.name, "href": f"/jobs/{job['id']}", "sub": wording.short_id(job["id"])},
        "status": {"text": wording.label(job), "tone": wording.TONES[job["status"]]},
        "train": loss(losses[-1] if losses else None),
        "valid": loss(best["full_valid_loss"] if best else None),
        "steps": wording.steps(job),
        "time": duration(training_seconds(job)),
    }


def _show_differences(jobs: list[Json]) -> None:
    settings = [flat_settings(job) for job in jobs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [name for name in names if len({one.get(name, "–") for one in settings}) > 1]
    with card("Settings that differ"):
        if not differing:
            tag("p", "All settings are the same.", "t-muted")
            return
        columns = [column("setting", "Setting", lead=True)]
        columns += [column(f"job{number}", name) for number, name in enumerate(distinct_names(jobs))]
        rows = [
            {"id": name, "setting": {"text": name, "sub": wording.UNITS.get(name.removeprefix("hyperparameters."))}}
            | {f"job{number}": one.get(name, "–") for number, one in enumerate(settings)}
            for name in differing
        ]
        DataTable("Settings that differ", columns, rows)


def flat_settings(job: Json) -> dict[str, str]:
    """Every setting by its dotted name, as text."""
    method = job["method"]["type"]
    tree = {
        "model": job["model"],
        "training_file": job["training_file"],
        "validation_file": job["validation_file"],
        "method": method,
        "seed": job["seed"],
        "hyperparameters": job["method"][method]["hyperparameters"],
        "lora": job["lora"],
        "quantization": job["quantization"] or "none",
    }
    return {name: clean(value, 200) for name, value in wording.flatten(tree)}
