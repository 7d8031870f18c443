"""The metrics of jobs: their panel; curves as ECharts options, losses on the same axes, then the other metrics."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import nicegui
from nicegui import ui
from nicegui.dependencies import esm_modules

from app.web.api_client import ApiClient, Json
from app.web.components.elements import box, button, card, chart, facts, link, note, refilled, tag
from app.web.components.forms import checkbox, filter_select
from app.web.formatting import loss, short
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.panel import Panel

MAX_POINTS = 2_000
PREVIEW_POINTS = 200  # read by index, where the metrics of a long job are selected out of all its steps
HINT = "Ctrl and the mouse wheel, or the bar below, zoom."
NO_METRICS_YET = "No metrics yet", "Curves appear after the first training step."
NO_METRICS = "No step was trained", "So there are no curves."
CHART_PAUSE_SECONDS = 3.0  # a running job sends all points again
Points = list[tuple[float, float | None]]

AXES = {"step": "Step", "tokens": "Tokens", "time": "Training time (s)"}
SMOOTHING = {"": "No smoothing", "0.6": "Smooth", "0.9": "Very smooth"}
COLOURS = ("--train", "--valid", "--ok", "--warn", "--bad")
MAX_SYMBOLS = 100  # of a curve of validations; more are one band, and take longer to draw than all lines
ECHARTS_MODULE = "nicegui-echart"
STATIC_IMPORT = re.compile(r'from ?"\./([^"]+)"')
LOSS_HEIGHT_PX = 250
METRIC_HEIGHT_PX = 92
GAP_PX = 46
LABELS_PX = 14  # of the axis below the losses
TOP_PX = 56
ZOOM_PX = 70
BYTES_PER_GB = 1e9
TEXT: Json = {":color": "cssColor('--muted')", "fontSize": 11}
TOOLTIP = {
    ":backgroundColor": "cssColor('--surface')",
    ":borderColor": "cssColor('--border')",
    "textStyle": {":color": "cssColor('--text')", "fontSize": 12},
}


class ChartMetric(NamedTuple):
    key: str
    label: str
    divisor: float = 1.0


METRICS = (
    ChartMetric("learning_rate", "Learning rate"),
    ChartMetric("grad_norm", "Gradient norm"),
    ChartMetric("tokens_per_second", "Tokens/s"),
    ChartMetric("peak_memory_bytes", "Peak memory (GB)", BYTES_PER_GB),
)


class Look(NamedTuple):
    """What the controls above a chart select."""

    axis: str = "step"
    is_log: bool = False
    smoothing: float = 0.0


class ChartedJob(NamedTuple):
    """The metrics of one job, oldest first."""

    name: str
    rows: Sequence[Json]


class CurvesCard:
    """The curves of jobs below the controls of how they look, with links to download them."""

    def __init__(
        self, label: str, png_name: str, title: str | None = None, smoothing: str = "", hint: str = ""
    ) -> None:
        self._jobs: Sequence[ChartedJob] = ()
        self.drawn_at = float("-inf")  # of time.monotonic
        with card(title) as self.element:
            with box("t-filters"):
                self._axis = filter_select("Horizontal axis", AXES, "step", self.draw)
                self._smoothing = filter_select("Smoothing", SMOOTHING, smoothing, self.draw)
                self._log = checkbox("Log scale", "", self.draw)
                if hint:
                    tag("span", hint, "t-hint t-mouse")
                tag("span", classes="t-grow")
                self.downloads = box("t-actions")
            self._chart = chart({}, label)
            with self.downloads:
                self._png = button("PNG")
        script = f"() => savePng(getElement({self._chart.id}).chart, {json.dumps(png_name)})"  # as it is shown
        self._png.on("click", js_handler=script)
        self.element.set_visibility(False)

    def show(self, jobs: Sequence[ChartedJob]) -> None:
        self._jobs = jobs
        self.element.set_visibility(bool(jobs))
        self.draw()

    def draw(self) -> None:
        look = Look(self._axis.value, bool(self._log.value), float(self._smoothing.value or 0))
        self._chart.style(f"height: {height_px(self._jobs)}px")
        self._chart.options.clear()
        self._chart.options.update(options(self._jobs, look))
        self._chart.update()
        self.drawn_at = time.monotonic()


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
        job, get = self.job, self.api.get
        request = asyncio.ensure_future(get(f"{self.path}/metrics", max_points=MAX_POINTS))
        is_long = not self._rows and (job["trained_steps"] or 0) > MAX_POINTS
        if is_long and (preview := await preview_rows(self.api, job["id"], request)):
            self._show(preview)
            self._curves.drawn_at = 0.0
        metrics = await request
        is_unfinished = job["status"] in wording.UNFINISHED
        is_early = is_unfinished and time.monotonic() - self._curves.drawn_at < CHART_PAUSE_SECONDS
        if not metrics["data"]:
            with refilled(self._empty):
                note(*(NO_METRICS_YET if is_unfinished else NO_METRICS))
        elif metrics["data"] != self._rows and not is_early:
            self._empty.clear()
            self._show(metrics["data"])
            self._show_facts(metrics["total"])

    def _show(self, rows: list[Json]) -> None:
        self._rows = rows
        self._curves.show([ChartedJob(self._name, rows)])

    def _show_facts(self, total: int) -> None:
        last, best = self._rows[-1], best_validation(self._rows)
        accuracy = last.get("train_mean_token_accuracy")
        with refilled(self._facts), card():
            facts(
                {
                    "Train loss": loss(last.get("train_loss")),
                    "Gradient norm": short(last.get("grad_norm")),
                    "Best validation loss": f"{loss(best['full_valid_loss'])} at step {best['step']:,}"
                    if best
                    else None,
                    "Token accuracy": f"{100 * accuracy:.1f} %" if accuracy else None,
                    "Shown": f"{len(self._rows):,} of {total:,} steps" if total > len(self._rows) else None,
                }
            )


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


def request_charts_early(is_needed_now: bool = True) -> None:
    """Let the browser request the modules of charts with the page that shows one, or before (`is_needed_now` False).

    Otherwise each is requested when the one that imports it has arrived, the largest one last.
    """
    relation = "modulepreload" if is_needed_now else "prefetch"
    ui.add_head_html("".join(f'<link rel="{relation}" href="{url}">' for url in _module_urls()))


@functools.cache
def _module_urls() -> list[str]:
    from nicegui.elements import echart  # noqa: F401  (registers its modules)

    ((key, module),) = ((key, one) for key, one in esm_modules.items() if one.name == ECHARTS_MODULE)
    names = ["index.js", *STATIC_IMPORT.findall((module.path / "index.js").read_text(encoding="utf-8"))]
    files = f"/_nicegui/{nicegui.__version__}"
    return [*(f"{files}/esm/{key}/{name}" for name in names), f"{files}/static/utils/dynamic_properties.js"]


def options(jobs: Sequence[ChartedJob], look: Look) -> Json:
    """One job: train and validation loss. Several: one colour for each, validation dashed."""
    shown = _measured(jobs)
    grids = _grids(len(shown))
    description = f"Curves of {jobs[0].name}" if len(jobs) == 1 else "Curves of the compared jobs"
    series: list[Json] = []
    for number, job in enumerate(jobs):
        x = x_values(job.rows, look.axis)
        series += _loss_series(job, x, look, number, is_single=len(jobs) == 1)
        for index, metric in enumerate(shown, start=1):
            values = [(at, _rounded(row.get(metric.key), metric.divisor)) for at, row in zip(x, job.rows, strict=True)]
            series.append(_line(job.name, values, index, COLOURS[number % len(COLOURS)], 1.2))
    indexes = list(range(len(grids)))
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": description}},
        "grid": grids,
        "title": [_title(text, grid) for text, grid in zip(["Loss", *(m.label for m in shown)], grids, strict=True)],
        "legend": {"top": 4, "right": 16, "type": "scroll", "left": 90, "textStyle": TEXT, "data": _legend(series)},
        "toolbox": {
            "right": 4,
            "top": 26,
            "feature": {"restore": {"title": "Whole range"}},
            "iconStyle": {":borderColor": "cssColor('--muted')"},
        },
        "tooltip": {"trigger": "axis", "confine": True, **TOOLTIP},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "xAxis": [_x_axis(index, index == indexes[-1], look.axis) for index in indexes],
        "yAxis": [_y_axis(index, look.is_log and index == 0) for index in indexes],
        "dataZoom": [
            {"type": "inside", "xAxisIndex": indexes, "zoomOnMouseWheel": "ctrl"},
            {"type": "slider", "xAxisIndex": indexes, "bottom": 8, "height": 20},
        ],
        "series": series,
    }


def height_px(jobs: Sequence[ChartedJob]) -> int:
    grids = _grids(len(_measured(jobs)))
    return int(grids[-1]["top"] + grids[-1]["height"]) + ZOOM_PX


def _measured(jobs: Sequence[ChartedJob]) -> list[ChartMetric]:
    return [metric for metric in METRICS if any(row.get(metric.key) is not None for job in jobs for row in job.rows)]


def x_values(rows: Sequence[Json], axis: str) -> list[float]:
    """The position of each row; the time is that of the tokens at the measured rate."""
    if axis != "time":
        return [float(row.get({"step": "step", "tokens": "num_tokens"}[axis]) or 0) for row in rows]
    seconds, tokens, found = 0.0, 0.0, []
    for row in rows:
        now = float(row.get("num_tokens") or tokens)
        seconds += (now - tokens) / (row.get("tokens_per_second") or 1.0)
        tokens = now
        found.append(round(seconds, 2))
    return found


def smoothed(values: Sequence[float | None], weight: float) -> list[float | None]:
    """The exponential moving average, corrected for its start; missing values stay missing."""
    found: list[float | None] = []
    average, count = 0.0, 0
    for value in values:
        if value is None:
            found.append(None)
            continue
        average, count = weight * average + (1 - weight) * value, count + 1
        found.append(average / (1 - weight**count))
    return found


def best_validation(rows: Sequence[Json]) -> Json | None:
    """The row with the lowest full validation loss."""
    measured = [row for row in rows if row.get("full_valid_loss") is not None]
    return min(measured, key=lambda row: float(row["full_valid_loss"]), default=None)


def _loss_series(job: ChartedJob, x: Sequence[float], look: Look, number: int, is_single: bool) -> list[Json]:
    train = [_rounded(row.get("train_loss")) for row in job.rows]
    valid: Points = [
        (at, row["full_valid_loss"])
        for at, row in zip(x, job.rows, strict=True)
        if row.get("full_valid_loss") is not None
    ]
    train_name = "Train loss" if is_single else job.name
    colour = COLOURS[0] if is_single else COLOURS[number % len(COLOURS)]
    series = []
    if look.smoothing:
        series.append(_line(f"{train_name} (raw)", list(zip(x, train, strict=True)), 0, colour, 1, opacity=0.3))
    train = smoothed(train, look.smoothing) if look.smoothing else train
    series.append(_line(train_name, list(zip(x, train, strict=True)), 0, colour, 2))
    if valid:
        name = "Validation loss" if is_single else f"{job.name} (validation)"
        line = _line(name, valid, 0, "--valid" if is_single else colour, 2, symbol=len(valid) <= MAX_SYMBOLS)
        line["lineStyle"]["type"] = "solid" if is_single else "dashed"
        best = min(valid, key=lambda point: float(point[1] or 0))
        line["markPoint"] = {
            "symbolSize": 12, "symbol": "diamond",
            "label": {"show": True, "position": "top", "formatter": "best", **TEXT},
            "data": [{"coord": [best[0], best[1]], "name": "best checkpoint"}],
        }  # fmt: skip
        series.append(line)
    return series


def _line(
    name: str, points: Points, axis: int, colour: str, width: float, symbol: bool = False, opacity: float = 1.0
) -> Json:
    css = f"cssColor('{colour}')"
    return {
        "type": "line", "name": name, "xAxisIndex": axis, "yAxisIndex": axis, ":data": _frozen(points),
        "showSymbol": symbol, "symbol": "circle", "symbolSize": 6,
        "lineStyle": {"width": width, "opacity": opacity, ":color": css}, "itemStyle": {":color": css},
        "emphasis": {"disabled": True},
    }  # fmt: skip


def _frozen(points: Points) -> str:
    """Points as an expression in JavaScript. Vue would wrap each of thousands of points in a proxy, which takes several
    times as long as drawing them; it leaves frozen arrays as they are.
    """
    return f"Object.freeze(JSON.parse('{json.dumps(points, separators=(',', ':'))}'))"


def _grids(metrics: int) -> list[Json]:
    grids = [{"left": 64, "right": 16, "top": TOP_PX, "height": LOSS_HEIGHT_PX}]
    top = TOP_PX + LOSS_HEIGHT_PX + LABELS_PX + GAP_PX
    for _ in range(metrics):
        grids.append({"left": 64, "right": 16, "top": top, "height": METRIC_HEIGHT_PX})
        top += METRIC_HEIGHT_PX + GAP_PX
    return grids


def _title(text: str, grid: Json) -> Json:
    style = {"fontSize": 12, "fontWeight": 600, ":color": "cssColor('--text')"}
    return {"text": text, "left": 8, "top": grid["top"] - 26, "textStyle": style}


def _x_axis(index: int, is_last: bool, axis: str) -> Json:
    return {
        "type": "value", "gridIndex": index, "min": "dataMin", "max": "dataMax",
        "axisLabel": {"show": is_last or index == 0, **TEXT},
        "name": AXES[axis] if is_last else "", "nameLocation": "middle", "nameGap": 24, "nameTextStyle": TEXT,
        "splitLine": {"show": False}, "axisLine": {"lineStyle": {":color": "cssColor('--border')"}},
    }  # fmt: skip


def _y_axis(index: int, is_log: bool) -> Json:
    return {
        "type": "log" if is_log else "value", "gridIndex": index, "scale": True, "splitNumber": 5 if index == 0 else 2,
        "axisLabel": {**TEXT, ":formatter": "chartNumber"},
        "splitLine": {"lineStyle": {":color": "cssColor('--border')"}},
    }  # fmt: skip


def _legend(series: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(one["name"] for one in series if one["yAxisIndex"] == 0 and "(raw)" not in one["name"]))


def _rounded(value: float | None, divisor: float = 1.0) -> float | None:
    """Six significant digits: a third of the bytes."""
    return None if value is None else float(f"{value / divisor:.6g}")
