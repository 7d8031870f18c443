"""The metrics of a job: curves with their controls, the best validation, and the download as CSV."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from app.web.api_client import ApiClient
from app.web.components.elements import card, chart, facts, link, note, tag
from app.web.components.forms import checkbox, filter_select
from app.web.formatting import loss, short
from app.web.pages.jobs import metrics_chart, wording
from app.web.pages.jobs.metrics_chart import AXES, SMOOTHING, ChartedJob, Look
from app.web.pages.jobs.panels.opened_job import OpenedJob

MAX_POINTS = 2_000
PREVIEW_POINTS = 200  # read by index, where the metrics of a long job are selected out of all its steps
CHART_PAUSE_SECONDS = 3.0  # a running job sends all points again

Json = dict[str, Any]


class MetricsPanel:
    def __init__(self, opened: OpenedJob) -> None:
        self._view, job = opened.view, opened.job
        self._look = Look()
        self._rows: list[Json] = []
        self._drawn_at = 0.0
        self._name = wording.name(job)
        self._facts = tag("div")
        self._empty = tag("div")
        with card() as self._card:
            self._build_controls()
            self._chart = chart({}, f"Curves of {self._name}")
            with self._downloads:
                link("CSV", f"/jobs/{job['id']}/metrics.csv", "t-button", download="")
                metrics_chart.png_button(self._chart, f"{job['id']}.png")
        self._card.set_visibility(False)

    def _build_controls(self) -> None:
        with tag("div", classes="t-filters"):
            self._axis = filter_select("Horizontal axis", AXES, "step", self._redraw)
            self._smoothing = filter_select("Smoothing", SMOOTHING, "", self._redraw)
            checkbox("Log scale", False, self._set_log)
            tag("span", "Ctrl and the mouse wheel, or the bar below, zoom.", "t-hint t-mouse")
            tag("span", classes="t-grow")
            self._downloads = tag("div", classes="t-actions")

    async def refresh(self, job: Json) -> None:
        request = asyncio.ensure_future(
            self._view.api.get(f"fine_tuning/jobs/{job['id']}/metrics", max_points=MAX_POINTS)
        )
        is_long = not self._rows and (job["trained_steps"] or 0) > MAX_POINTS
        if is_long and (preview := await preview_rows(self._view.api, job["id"], request)):
            self._rows = preview
            self._redraw()
            self._drawn_at = 0.0
        metrics = await request
        is_late = job["status"] not in wording.UNFINISHED or time.monotonic() - self._drawn_at > CHART_PAUSE_SECONDS
        if metrics["data"] == self._rows and self._rows:
            return
        if not metrics["data"]:
            self._show_empty(job)
        elif is_late:
            self._rows = metrics["data"]
            self._empty.clear()
            self._show_facts(metrics["total"])
            self._redraw()

    def _show_empty(self, job: Json) -> None:
        self._empty.clear()
        with self._empty:
            if job["status"] in wording.UNFINISHED:
                note("No metrics yet", "Curves appear after the first training step.")
            else:
                note("No step was trained", "So there are no curves.")

    def _show_facts(self, total: int) -> None:
        last, best = self._rows[-1], metrics_chart.best_validation(self._rows)
        values = {"Train loss": loss(last.get("train_loss")), "Gradient norm": short(last.get("grad_norm"))}
        if best is not None:
            values["Best validation loss"] = f"{loss(best['full_valid_loss'])} at step {best['step']:,}"
        if accuracy := last.get("train_mean_token_accuracy"):
            values["Token accuracy"] = f"{100 * accuracy:.1f} %"
        if total > len(self._rows):
            values["Shown"] = f"{len(self._rows):,} of {total:,} steps"
        self._facts.clear()
        with self._facts, card():
            facts(values)

    def _set_log(self, is_log: bool) -> None:
        self._look = Look(self._look.axis, is_log, self._look.smoothing)
        self._redraw()

    def _redraw(self) -> None:
        self._look = Look(self._axis.value, self._look.is_log, float(self._smoothing.value or 0))
        charted_jobs = [ChartedJob(self._name, self._rows)]
        self._card.set_visibility(True)
        self._chart.style(f"height: {metrics_chart.height_px(charted_jobs)}px")
        self._chart.options.clear()
        self._chart.options.update(metrics_chart.options(charted_jobs, self._look))
        self._chart.update()
        self._drawn_at = time.monotonic()


async def preview_rows(api: ApiClient, job_id: str, metrics: asyncio.Future[Json]) -> list[Json]:
    """A few points of the train loss to draw until the metrics arrive; none if these arrive first."""
    request = asyncio.ensure_future(api.get("fine_tuning/loss_curves", jobs=job_id, max_points=PREVIEW_POINTS))
    await asyncio.wait((request, metrics), return_when=asyncio.FIRST_COMPLETED)
    if not request.done() or request.exception() is not None or metrics.done():
        request.cancel()
        return []
    (curve,) = request.result()["data"]
    points = zip(curve["steps"], curve["train_losses"], strict=True)
    return [{"step": step, "train_loss": loss} for step, loss in points]
