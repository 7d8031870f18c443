"""The metrics of jobs: their panel; curves as ECharts options, losses on the same axes, then the other metrics."""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import nicegui
from nicegui import ui
from nicegui.dependencies import esm_modules

from app.domain.error_text.json_text import counted
from app.domain.methods import METHODS
from app.web.api_client import Json
from app.web.components.elements import box, button, card, chart, facts, link, note, refilled, tag
from app.web.components.forms import filter_select
from app.web.formatting import loss, short
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.panel import Panel

MAX_POINTS = 2_000
HINT = "Ctrl and the mouse wheel, or the bar below, zoom."
NO_METRICS_YET = "No metrics yet", "Curves appear after the first training step."
NO_METRICS = "No step was trained", "So there are no curves."
CHART_PAUSE_SECONDS = 3.0  # a running job sends all points again
Points = list[tuple[float, float]]

AXES = {"step": "Step", "num_tokens": "Tokens", "time": "Training time (s)"}
SMOOTHING = {"": "No smoothing", "0.6": "Smooth", "0.9": "Very smooth"}
RANGES = {"": "Loss: most values", "all": "Loss: all values", "log": "Loss: log scale"}
OUTLIER_RANGES = 1.5  # of quartiles above the third one, as in a box plot (Tukey's fences)
MIN_CLIPPED_SHARE = 0.25  # of the axis: a smaller gain is worth no clipping
COLOURS = ("--train", "--valid", "--ok", "--warn", "--bad", "--line-6", "--line-7", "--line-8", "--line-9")
MAX_SYMBOLS = 100  # of a curve of validations; more are one band, and take longer to draw than all lines
ECHARTS_MODULE = "nicegui-echart"
STATIC_IMPORT = re.compile(r'from ?"\./([^"]+)"')
LOSS_HEIGHT_PX = 250
METRIC_HEIGHT_PX = 92
GAP_PX = 46
TOP_PX = 56
METRICS_TOP_PX = TOP_PX + LOSS_HEIGHT_PX + GAP_PX + 14  # the labels of the axis below the losses
ZOOM_PX = 70
BYTES_PER_GB = 1e9
TEXT: Json = {":color": "cssColor('--muted')", "fontSize": 11}
BORDER = {":color": "cssColor('--border')"}
TITLE = {"fontSize": 12, "fontWeight": 600, ":color": "cssColor('--text')"}
TOOLTIP = {
    ":backgroundColor": "cssColor('--surface')",
    ":borderColor": "cssColor('--border')",
    "textStyle": {":color": "cssColor('--text')", "fontSize": 12},
}


NAMES = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.metrics))
OF_METHODS = {name: "KL" if name == "kl" else name.replace("_", " ").capitalize() for name in NAMES}
# Below the losses, by their titles: the field of each step, and that of its validation, if any.
METRICS = {title: (f"train_{name}", f"full_valid_{name}") for name, title in OF_METHODS.items()} | {
    "Learning rate": ("learning_rate",),
    "Gradient norm": ("grad_norm",),
    "Tokens/s": ("tokens_per_second",),
    "Peak memory (GB)": ("peak_memory_bytes",),
}


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
                self._range = filter_select("Range of the losses", RANGES, "", self.draw)
                if hint:
                    tag("span", hint, "t-hint t-mouse")
                tag("span", classes="t-grow")
                self.downloads = box("t-actions")
            self._clipped = tag("p", "", "t-hint", role="status")
            self._chart = chart({}, label)
            with self.downloads:
                self._reset = button("Reset zoom")
                self._png = button("PNG")
        whole = "{type: 'dataZoom', start: 0, end: 100}"
        self._reset.on("click", js_handler=f"() => getElement({self._chart.id}).chart.dispatchAction({whole})")
        script = f"() => savePng(getElement({self._chart.id}).chart, {json.dumps(png_name)})"  # as it is shown
        self._png.on("click", js_handler=script)
        self.element.set_visibility(False)

    def show(self, jobs: Sequence[ChartedJob]) -> None:
        self._jobs = jobs
        self.element.set_visibility(bool(jobs))
        self.draw()

    def draw(self) -> None:
        top = None if self._range.value else robust_top(self._jobs)
        made = options(self._jobs, self._axis.value, self._range.value == "log", float(self._smoothing.value or 0), top)
        self._clipped.set_text("" if top is None else clipped_text(self._jobs, top))
        self._clipped.set_visibility(top is not None)
        last = made["grid"][-1]
        self._chart.style(f"height: {last['top'] + last['height'] + ZOOM_PX}px")
        self._chart.options.clear()
        self._chart.options.update(made)
        self._chart.update()
        self.drawn_at = time.monotonic()


class MetricsPanel(Panel):
    def build(self) -> None:
        self._rows: list[Json] = []
        self._facts = box("")
        self._empty = box("")
        job = self.job
        self._curves = CurvesCard(f"Curves of {wording.name(job)}", f"{job['id']}.png", "Curves", hint=HINT)
        with self._curves.downloads:
            link("CSV", f"/jobs/{job['id']}/metrics.csv", "t-button", download="").move(target_index=0)

    async def load(self) -> None:
        metrics = await self.api.get(f"{self.path}/metrics", max_points=MAX_POINTS)
        is_unfinished = self.job["status"] in wording.UNFINISHED
        is_early = is_unfinished and time.monotonic() - self._curves.drawn_at < CHART_PAUSE_SECONDS
        if not metrics["data"]:
            with refilled(self._empty):
                note(*(NO_METRICS_YET if is_unfinished else NO_METRICS))
        elif metrics["data"] != self._rows and not is_early:
            self._empty.clear()
            self._rows = metrics["data"]
            self._curves.show([ChartedJob(wording.name(self.job), self._rows)])
            self._show_facts(metrics["total"])

    def _show_facts(self, total: int) -> None:
        last, best = self._rows[-1], best_validation(self._rows)
        with refilled(self._facts), card():
            facts(
                {
                    "Train loss": loss(last.get("train_loss")),
                    "Gradient norm": short(last.get("grad_norm")),
                    "Best validation loss": f"{loss(best['full_valid_loss'])} at step {best['step']:,}"
                    if best
                    else None,
                    **{
                        title: short(last[f"train_{name}"])
                        for name, title in OF_METHODS.items()
                        if last.get(f"train_{name}") is not None
                    },
                    "Shown": f"{len(self._rows):,} of {total:,} steps" if total > len(self._rows) else None,
                }
            )


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


def robust_top(jobs: Sequence[ChartedJob]) -> float | None:
    """The end of the loss axis above which only outliers are, such as the first steps; None if all values fit well.

    Each curve has its own fence, so that no curve of a high loss is hidden as a whole.
    """
    curves = [curve for job in jobs for curve in _losses(job) if curve]
    if not curves:
        return None
    lowest, highest = min(map(min, curves)), max(map(max, curves))
    top = _round_up(max(map(_fence, curves)))
    return top if highest - top > MIN_CLIPPED_SHARE * (highest - lowest) else None


def clipped_text(jobs: Sequence[ChartedJob], top: float) -> str:
    """What of the losses is above the end of the axis, and how it is shown."""
    values = [value for job in jobs for curve in _losses(job) for value in curve]
    above = sum(value > top for value in values)
    return (
        f"{above:,} of {counted(len(values), 'loss value')} above {top:g}, up to {loss(max(values))}, "
        f"{'is' if above == 1 else 'are'} not shown: choose all values, or the log scale."
    )


def _losses(job: ChartedJob) -> list[list[float]]:
    """The curves of the train and of the validation loss."""
    names = ("train_loss", "full_valid_loss")
    return [[float(row[name]) for row in job.rows if row.get(name) is not None] for name in names]


def _fence(curve: list[float]) -> float:
    """The highest value of a curve that is no outlier; at most the highest tenth are outliers."""
    if len(curve) == 1:
        return curve[0]
    first, _, third = statistics.quantiles(curve, n=4, method="inclusive")
    tenth = sorted(curve)[-1 - math.ceil((len(curve) - 1) / 10)]  # one of the values: an interpolated one is rounded
    fence = max(tenth, third + OUTLIER_RANGES * (third - first))
    return max(value for value in curve if value <= fence)


def _round_up(value: float) -> float:
    """To two significant digits, for the label of the axis."""
    if value <= 1e-300:  # the unit of a smaller one is 0
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.6g}")


def options(
    jobs: Sequence[ChartedJob],
    axis: str = "step",
    is_log: bool = False,
    smoothing: float = 0.0,
    top: float | None = None,
) -> Json:
    """One job: train and validation loss. Several: one colour for each, validation dashed. `top` ends the loss axis."""
    measured = {key for job in jobs for row in job.rows for key in row if row[key] is not None}
    shown = {title: fields for title, fields in METRICS.items() if not measured.isdisjoint(fields)}
    is_single = len(jobs) == 1
    description = f"Curves of {jobs[0].name}" if is_single else "Curves of the compared jobs"
    series: list[Json] = []
    for job, colour in zip(jobs, COLOURS[: len(jobs)], strict=True):
        x = x_values(job.rows, axis)
        series += _loss_series(job, x, smoothing, colour, is_single)
        for index, (field, *validated) in enumerate(shown.values(), start=1):
            series.append(_line(job.name, _points(job, x, field), index, colour, 1.2))
            for each in validated:
                points = _points(job, x, each)
                series.append(_validation(f"{job.name} (validation)", points, index, colour, 1.2, is_single))
    indexes = range(len(shown) + 1)
    tops = [TOP_PX, *(METRICS_TOP_PX + number * (METRIC_HEIGHT_PX + GAP_PX) for number in range(len(shown)))]
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": description}},
        "grid": [
            {"left": 64, "right": 16, "top": top, "height": METRIC_HEIGHT_PX if index else LOSS_HEIGHT_PX}
            for index, top in enumerate(tops)
        ],
        "title": [
            {"text": text, "left": 8, "top": top - 26, "textStyle": TITLE}
            for text, top in zip(["Loss", *shown], tops, strict=True)
        ],
        "legend": {"top": 4, "right": 16, "type": "scroll", "left": 90, "textStyle": TEXT, "data": _legend(series)},
        "tooltip": {"trigger": "axis", "confine": True, **TOOLTIP},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        **_axes(indexes, axis, is_log, top),
        "dataZoom": [
            {"type": "inside", "xAxisIndex": [*indexes], "zoomOnMouseWheel": "ctrl"},
            {"type": "slider", "xAxisIndex": [*indexes], "bottom": 8, "height": 20},
        ],
        "series": series,
    }


def x_values(rows: Sequence[Json], axis: str) -> list[float]:
    """The position of each row; the time is that of the tokens at the measured rate."""
    if axis != "time":
        return [float(row.get(axis) or 0) for row in rows]
    seconds, tokens, found = 0.0, 0.0, []
    for row in rows:
        now = float(row.get("num_tokens") or tokens)
        seconds += (now - tokens) / (row.get("tokens_per_second") or 1.0)
        tokens = now
        found.append(round(seconds, 2))
    return found


def smoothed(values: Iterable[float], weight: float) -> list[float]:
    """The exponential moving average, corrected for its start."""
    averages = accumulate(values, lambda average, value: weight * average + (1 - weight) * value, initial=0.0)
    return [average / (1 - weight**count) for count, average in enumerate(averages) if count]


def best_validation(rows: Sequence[Json]) -> Json | None:
    """The row with the lowest full validation loss."""
    measured = [row for row in rows if row.get("full_valid_loss") is not None]
    return min(measured, key=lambda row: float(row["full_valid_loss"]), default=None)


def _loss_series(job: ChartedJob, x: Sequence[float], smoothing: float, colour: str, is_single: bool) -> list[Json]:
    train, valid = _points(job, x, "train_loss"), _points(job, x, "full_valid_loss")
    name = "Train loss" if is_single else job.name
    series = [_line(f"{name} (raw)", train, 0, colour, 1, opacity=0.3)] if smoothing else []
    values = smoothed((value for _, value in train), smoothing)
    series.append(_line(name, [(at, value) for (at, _), value in zip(train, values, strict=True)], 0, colour, 2))
    if valid:
        name = "Validation loss" if is_single else f"{job.name} (validation)"
        line = _validation(name, valid, 0, colour, 2, is_single)
        line["markPoint"] = {
            "symbolSize": 12, "symbol": "diamond",
            "label": {"show": True, "position": "top", "formatter": "best", **TEXT},
            "data": [{"type": "min", "name": "best checkpoint"}],
        }  # fmt: skip
        series.append(line)
    return series


def _validation(name: str, points: Points, axis: int, colour: str, width: float, is_single: bool) -> Json:
    line = _line(name, points, axis, "--valid" if is_single else colour, width, symbol=len(points) <= MAX_SYMBOLS)
    line["lineStyle"]["type"] = "solid" if is_single else "dashed"
    return line


def _points(job: ChartedJob, x: Sequence[float], key: str) -> Points:
    """The measured values. Memory is in gigabytes."""
    divisor = BYTES_PER_GB if key == "peak_memory_bytes" else 1.0
    measured = zip(x, (row.get(key) for row in job.rows), strict=True)
    return [(at, value / divisor) for at, value in measured if value is not None]


def _line(
    name: str, points: Points, axis: int, colour: str, width: float, symbol: bool = False, opacity: float = 1.0
) -> Json:
    """A series. Vue would wrap each of thousands of points in a proxy, which takes several times as long as drawing
    them; it leaves frozen arrays, which the expression in JavaScript makes. Six digits are a third of the bytes.
    """
    css = f"cssColor('{colour}')"
    rounded = json.dumps([(at, float(f"{value:.6g}")) for at, value in points], separators=(",", ":"))
    return {
        "type": "line", "name": name, "xAxisIndex": axis, "yAxisIndex": axis,
        ":data": f"Object.freeze(JSON.parse('{rounded}'))",
        "showSymbol": symbol, "symbol": "circle", "symbolSize": 6,
        "lineStyle": {"width": width, "opacity": opacity, ":color": css}, "itemStyle": {":color": css},
        "emphasis": {"disabled": True},
    }  # fmt: skip


def _axes(indexes: range, axis: str, is_log: bool, top: float | None) -> Json:
    x, y = [], []
    for index in indexes:
        is_last = index == indexes[-1]
        x.append({
            "type": "value", "gridIndex": index, "min": "dataMin", "max": "dataMax",
            "axisLabel": {"show": is_last or not index, "hideOverlap": True, **TEXT},
            "name": AXES[axis] if is_last else "", "nameLocation": "middle", "nameGap": 24, "nameTextStyle": TEXT,
            "splitLine": {"show": False}, "axisLine": {"lineStyle": BORDER},
        })  # fmt: skip
        y.append({
            "type": "log" if is_log and not index else "value", "gridIndex": index, "scale": True,
            "splitNumber": 2 if index else 5, "max": None if index else top,
            "axisLabel": {"hideOverlap": True, **TEXT, ":formatter": "chartNumber"},
            "splitLine": {"lineStyle": BORDER},
        })  # fmt: skip
    return {"xAxis": x, "yAxis": y}


def _legend(series: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(one["name"] for one in series if one["yAxisIndex"] == 0 and "(raw)" not in one["name"]))
