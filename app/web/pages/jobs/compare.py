"""Two to five jobs: curves overlaid, and only the settings and results that differ."""

from __future__ import annotations

import asyncio
import time
from operator import itemgetter
from urllib.parse import quote

from app.domain.jobs.create_job import settings_of
from app.domain.jobs.states import training_seconds
from app.web.api_client import Json
from app.web.components.data_table import DataTable, lead_column, number_column, text_column
from app.web.components.elements import card, link, note, tag
from app.web.formatting import duration, loss
from app.web.frame import View, refresh_live, screen
from app.web.pages.jobs import metrics, wording
from app.web.pages.jobs.metrics import ChartedJob, CurvesCard

MAX_POINTS = 1_000
MIN_JOBS, MAX_JOBS = 2, 5
REFRESH_SECONDS = 3.0


@screen("/jobs/compare", "Compare jobs")
class ComparePage(View):
    async def build(self) -> None:
        tag("h1", "Compare jobs")
        job_ids = list(dict.fromkeys(quote(one, safe="") for one in self.query("jobs").split(",") if one))
        if not MIN_JOBS <= len(job_ids) <= MAX_JOBS:
            note("Choose two to five jobs", "Select them in the list of jobs, then press Compare.", "warn")
            link("Jobs", "/jobs", "t-button")
            return
        metrics.request_charts_early()
        self._job_ids = job_ids
        self._jobs: list[Json] = []
        self._results = DataTable("Results", RESULT_COLUMNS)
        self._empty = note("No metrics yet", "None of these jobs has trained a step.")
        self._curves = CurvesCard("Curves of the compared jobs", "compared-jobs.png", "Curves", "0.6")
        await self._refresh()
        _show_differences(self._jobs)
        refresh_live(self, self._refresh, interval_seconds=REFRESH_SECONDS)

    async def _refresh(self) -> None:
        """A running job sends all points again, so not often; the client keeps those of others by their ETag."""
        jobs = await asyncio.gather(*(self.api.get(f"fine_tuning/jobs/{one}") for one in self._job_ids))
        if jobs == self._jobs or time.monotonic() - self._curves.drawn_at < REFRESH_SECONDS:
            return
        paths = [f"fine_tuning/jobs/{one}/metrics" for one in self._job_ids]
        metrics = await asyncio.gather(*(self.api.get(path, max_points=MAX_POINTS) for path in paths))
        self._jobs = jobs
        rows = [one["data"] for one in metrics]
        charted = [ChartedJob(*pair) for pair in zip(distinct_names(jobs), rows, strict=True)]
        self._results.show(job | {"charted": one} for job, one in zip(jobs, charted, strict=True))
        drawn = [one for one in charted if one.rows]
        self._empty.set_visibility(not drawn)
        self._curves.show(drawn)


def distinct_names(jobs: list[Json]) -> list[str]:
    """A clone has the name of its original: then the short ids tell them apart."""
    names = [wording.name(job) for job in jobs]
    return [
        f"{name} ({wording.short_id(job['id'])})" if names.count(name) > 1 else name
        for name, job in zip(names, jobs, strict=True)
    ]


def _last_loss(charted: ChartedJob) -> str:
    losses = [row["train_loss"] for row in charted.rows if row.get("train_loss") is not None]
    return loss(losses[-1] if losses else None)


def _best_loss(charted: ChartedJob) -> str:
    best = metrics.best_validation(charted.rows)
    return loss(best["full_valid_loss"] if best else None)


RESULT_COLUMNS = (
    lead_column("Job", "", lambda job: wording.job_cell(job) | {"text": job["charted"].name}),
    text_column("Status", "", wording.status),
    number_column("Train loss", "charted", _last_loss),
    number_column("Best valid. loss", "charted", _best_loss),
    text_column("Evaluation", "", wording.result),
    number_column("Progress", "", wording.steps),
    number_column("Training time", "", lambda job: duration(training_seconds(job))),
)


def _show_differences(jobs: list[Json]) -> None:
    settings = [job_settings(job) for job in jobs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [{"name": name, "values": [one.get(name, "–") for one in settings]} for name in names]
    differing = [row for row in rows if len(set(row["values"])) > 1]
    with card("Settings that differ"):
        if not differing:
            tag("p", "All settings are the same.", "t-muted")
            return
        columns = [lead_column("Setting", "", lambda row: {"text": row["name"], "sub": wording.UNITS.get(row["name"])})]
        columns += [text_column(name, "values", itemgetter(number)) for number, name in enumerate(distinct_names(jobs))]
        DataTable("Settings that differ", columns, differing, key="name")


def job_settings(job: Json) -> dict[str, str]:
    """Every setting by its dotted name, as text. The evaluation of a job is its result."""
    settings = settings_of(job | {"evaluation": None})
    return {name: wording.setting_text(value) for name, value in settings.items()}
