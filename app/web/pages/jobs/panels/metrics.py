"""The metrics of a job: curves with their controls, the best validation, and the download as CSV."""

from __future__ import annotations

import asyncio
import time

from app.web.api_client import ApiClient, Json
from app.web.components.elements import box, card, facts, link, note
from app.web.formatting import loss, short
from app.web.pages.jobs import metrics_chart, wording
from app.web.pages.jobs.metrics_chart import ChartedJob, CurvesCard
from app.web.pages.jobs.panels.panel import Panel

MAX_POINTS = 2_000
PREVIEW_POINTS = 200  # read by index, where the metrics of a long job are selected out of all its steps
HINT = "Ctrl and the mouse wheel, or the bar below, zoom."
NO_METRICS_YET = "No metrics yet", "Curves appear after the first training step."
NO_METRICS = "No step was trained", "So there are no curves."
CHART_PAUSE_SECONDS = 3.0  # a running job sends all points again


class MetricsPanel(Panel):
    def build(self) -> None:
        self._rows: list[Json] = []
        self._facts = box("")
        self._empty = box("")
        job, self._name = self.job, wording.name(self.job)
        self._curves = CurvesCard(f"Curves of {self._name}", f"{job['id']}.png", hint=HINT)
        with self._curves.downloads:
            link("CSV", f"/jobs/{job['id']}/metrics.csv", "t-button", download="").move(target_index=0)

    async def load(self) -> None:
        job, get = self.job, self.view.api.get
        request = asyncio.ensure_future(get(f"{self.path}/metrics", max_points=MAX_POINTS))
        is_long = not self._rows and (job["trained_steps"] or 0) > MAX_POINTS
        if is_long and (preview := await preview_rows(self.view.api, job["id"], request)):
            self._show(preview)
            self._curves.drawn_at = 0.0
        metrics = await request
        is_unfinished = job["status"] in wording.UNFINISHED
        is_early = is_unfinished and time.monotonic() - self._curves.drawn_at < CHART_PAUSE_SECONDS
        if not metrics["data"]:
            self._empty.clear()
            with self._empty:
                note(*(NO_METRICS_YET if is_unfinished else NO_METRICS))
        elif metrics["data"] != self._rows and not is_early:
            self._empty.clear()
            self._show(metrics["data"])
            self._show_facts(metrics["total"])

    def _show(self, rows: list[Json]) -> None:
        self._rows = rows
        self._curves.show([ChartedJob(self._name, rows)])

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
