"""Jobs beside each other, such as those of a group: results, curves overlaid, only the settings that differ; the best
by the held-out rows can be promoted.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from operator import itemgetter
from urllib.parse import quote

from nicegui import ui

from app.domain.jobs.create_job import settings_of
from app.domain.jobs.states import training_seconds
from app.web.api_client import Json
from app.web.components.data_table import Cell, DataTable, lead_column, number_column, text_column
from app.web.components.elements import box, button, card, link, note, refilled, tag
from app.web.components.forms import form_dialog, select_field
from app.web.formatting import count, duration, loss, size
from app.web.frame import View, refresh_live, screen
from app.web.pages.jobs import metrics, wording
from app.web.pages.jobs.metrics import COLOURS, ChartedJob, CurvesCard
from app.web.pages.jobs.panels.deliveries import target_options
from app.web.pages.jobs.panels.evaluations import difference_cell

MAX_POINTS = 1_000
MIN_JOBS, MAX_JOBS = 2, len(COLOURS)  # those of the largest group, and the job that it varies
REFRESH_SECONDS = 3.0
FILE_KINDS = ("training_file", "validation_file")
PROMOTION = (
    "It is delivered to a target. A target that serves one name serves this adapter under it from then on, in place of "
    "the one before: clients of the name change nothing."
)


@screen("/jobs/compare", "Compare jobs")
class ComparePage(View):
    async def build(self) -> None:
        tag("h1", "Compare jobs")
        job_ids = [quote(one, safe="") for one in self.query("jobs").split(",") if one]
        if group := self.query("group"):
            job_ids += [
                job["id"] for job in await self.api.items("fine_tuning/jobs", MAX_JOBS, group=group, order="asc")
            ]
        job_ids = list(dict.fromkeys(job_ids))
        if not MIN_JOBS <= len(job_ids) <= MAX_JOBS:
            note(
                f"Choose {MIN_JOBS} to {MAX_JOBS} jobs", "Select them in the list of jobs, then press Compare.", "warn"
            )
            link("Jobs", "/jobs", "t-button")
            return
        metrics.request_charts_early()
        self._job_ids = job_ids
        self._jobs: list[Json] = []
        self._best_id = ""
        self._best = box("t-stack", aria_live="polite")
        self._dialogs = box("")
        self._results = DataTable("Results", RESULT_COLUMNS)
        self._empty = note("No metrics yet", "None of these jobs has trained a step.")
        self._curves = CurvesCard("Curves of the compared jobs", "compared-jobs.png", "Curves", "0.6")
        await self._refresh()
        await self._show_differences()
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
        best = best_job(jobs)
        self._show_best(best)
        self._results.show(
            job | {"charted": one, "is_best": job is best} for job, one in zip(jobs, charted, strict=True)
        )
        drawn = [one for one in charted if one.rows]
        self._empty.set_visibility(not drawn)
        self._curves.show(drawn)

    def _show_best(self, best: Json | None) -> None:
        """Only when it changes: a refresh must not take the focus from the button."""
        if best is None or best["id"] == self._best_id:
            return
        self._best_id = best["id"]
        title, text = f"Best: {wording.name(best)}", best["evaluation"]["headline"]["text"]
        with refilled(self._best), note(title, text, "ok"), box("t-actions"):
            link("Open", f"/jobs/{best['id']}", "t-button")
            if self.may("jobs:write"):
                button("Promote", partial(self._ask_to_promote, best), "t-primary")

    async def _show_differences(self) -> None:
        jobs, settings = self._jobs, [job_settings(job) for job in self._jobs]
        files = await wording.file_names(self.api, {job[kind] for job in jobs for kind in FILE_KINDS if job[kind]})
        names = list(dict.fromkeys(name for one in settings for name in one))
        texts = {name: [one.get(name, "–") for one in settings] for name in names}
        rows = [{"name": name, "values": [files.get(one, one) for one in values]} for name, values in texts.items()]
        differing = [row for row in rows if len(set(row["values"])) > 1]
        with card("Settings that differ"):
            if not differing:
                tag("p", "All settings are the same.", "t-muted")
                return
            columns = [
                lead_column("Setting", "", lambda row: {"text": row["name"], "sub": wording.UNITS.get(row["name"])}),
                *(text_column(name, "values", itemgetter(number)) for number, name in enumerate(distinct_names(jobs))),
            ]
            DataTable("Settings that differ", columns, differing, key="name")

    async def _ask_to_promote(self, job: Json) -> None:
        with refilled(self._dialogs):
            targets = await target_options(self.api)
        if targets is None:
            return

        async def send() -> None:
            await self.api.post(f"fine_tuning/jobs/{job['id']}/deliveries", {"target": target.value})
            ui.navigate.to(f"/jobs/{job['id']}?tab=deliveries")

        with self._dialogs, form_dialog(f"Promote {wording.name(job)}", "Promote", send):
            tag("p", PROMOTION)
            target = select_field("Target", targets)


def best_job(jobs: list[Json]) -> Json | None:
    """The job with the highest mean score, of equal ones that of the shortest training; None unless at least two were
    scored, all by the same grader on the same file, and this one above the base model.
    """
    scored = [job for job in jobs if (job["evaluation"] or {}).get("headline")]
    measures = {(job["evaluation"]["file"], job["evaluation"]["headline"]["grader"]) for job in scored}
    if len(scored) < MIN_JOBS or len(measures) > 1:
        return None
    best = max(scored, key=lambda job: (_mean_score(job), -(training_seconds(job) or 0)))
    return best if _mean_score(best) > _mean_score(best, "base") else None


def _mean_score(job: Json, model: str = "adapter") -> float:
    mean = job["evaluation"]["headline"][model]["mean"]
    return float("-inf") if mean is None else float(mean)


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


def _peak_memory(charted: ChartedJob) -> str:
    return size(max((row["peak_memory_bytes"] for row in charted.rows if row.get("peak_memory_bytes")), default=None))


def _score(job: Json) -> Cell | str:
    result = wording.result(job)
    if job["is_best"] and isinstance(result, dict):
        return result | {"tone": "ok", "sub": f"best; {result['sub']}"}
    return result


def _difference(evaluation: Json | None) -> Cell | str:
    headline = (evaluation or {}).get("headline")
    return difference_cell(headline["difference"] if headline else None)


RESULT_COLUMNS = (
    lead_column("Job", "", lambda job: wording.job_cell(job) | {"text": job["charted"].name}),
    text_column("Status", "", wording.status),
    text_column("Held-out score", "", _score),
    text_column("Better than the base (95 % interval)", "evaluation", _difference),
    number_column("Train loss", "charted", _last_loss),
    number_column("Best valid. loss", "charted", _best_loss),
    number_column("Progress", "", wording.steps),
    number_column("Trained tokens", "trained_tokens", count),
    number_column("Training time", "", lambda job: duration(training_seconds(job))),
    number_column("Peak memory", "charted", _peak_memory),
)


def job_settings(job: Json) -> dict[str, str]:
    """Every setting by its dotted name, as text. The evaluation of a job is its result, and its rate is absolute."""
    settings = settings_of(job | {"evaluation": None})
    if settings["learning_rate"] is not None:
        del settings["learning_rate_multiplier"]  # the rate follows from it; a clone states the rate
    return {name: wording.setting_text(value) for name, value in settings.items()}
