"""The report on a dataset: warnings and findings by line, lengths in tokens, rows as the model sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.web.api_client import Json
from app.web.components.data_table import Cell, DataTable, lead_column, number_column
from app.web.components.elements import TokenView, box, button, card, chart, facts, link, note, tag
from app.web.formatting import count

MAX_LINES = 20  # of a warning
MAX_LABELS_SHOWN = 30
HEIGHT_PX = 220

OpenLine = Callable[[int], Awaitable[None]]


def show_labels(labels: Mapping[str, Json] | None) -> None:
    """The rows of each label of a classification."""
    if not labels:
        return
    rows = [{"label": label, **counts} for label, counts in labels.items()]
    DataTable("Rows of each label", LABEL_COLUMNS, rows[:MAX_LABELS_SHOWN], key="label")
    if (more := len(rows) - MAX_LABELS_SHOWN) > 0:
        tag("p", f"and {counted(more, 'more label')}", "t-muted")


def show_verdict(report: Json, open_line: OpenLine) -> None:
    """Whether jobs can train on the file, with what is wrong or unusual by line."""
    is_complete, message = report["coverage"]["complete"], report["message"].removeprefix("Valid: ")
    valid = "Valid" if is_complete else "Valid as far as it was checked"
    with note(
        valid if report["valid"] else "Not usable for training",
        message[:1].upper() + message[1:],
        ("ok" if is_complete else "warn") if report["valid"] else "bad",
    ):
        if report["findings"]["data"]:
            tag("p", "Correct the lines below in your file, then upload it again: a stored file is not changed.")
            link("Upload the corrected file", "/datasets", "t-button")
    for warning in report["warnings"]:
        _show_warning(warning, open_line)
    if report["findings"]["data"]:
        _show_findings(report["findings"], open_line)


def show_tokens(report: Json) -> None:
    """The lengths of the rows, and the first rows as the model sees them."""
    if report["tokens"]["lengths"]:
        with card("Lengths"):
            facts(length_facts(report))
            _histogram(report["tokens"]["histogram"], report["context_length"])
    with card("As the model sees it"):
        _legend()
        for row in report["rows"]:
            _show_row(row)
        if not report["rows"]:
            tag("p", "No row can be shown.", "t-muted")


def _show_warning(warning: Json, open_line: OpenLine) -> None:
    lines = warning.get("lines") or warning.get("first_lines") or []
    with note(warning["message"], tone="warn"):
        if isinstance(lines, list) and lines:
            with box("t-row"):
                tag("span", "Lines")
                for line in lines[:MAX_LINES]:
                    show = button(f"{line:,}", partial(open_line, line), "t-small-button")
                    show.props["aria-label"] = f"Show the row of line {line:,}"


def _show_findings(findings: Json, open_line: OpenLine) -> None:
    with card(f"{counted(findings['count'], 'finding')} in {counted(findings['lines'], 'line')}"):
        rows = [{"id": str(number)} | one for number, one in enumerate(findings["data"])]
        table = DataTable("Findings", FINDING_COLUMNS, rows, label=lambda one: f"of line {one['line']:,}")
        table.on_event("press", lambda number, _: open_line(findings["data"][int(number)]["line"]))


SIDES = {
    "preferred": "preferred answer",
    "non_preferred": "other answer",
    "desirable": "desirable",
    "undesirable": "undesirable",
}


def _line(number: int) -> Cell:
    return {"text": f"{number:,}", "buttons": [{"name": "show", "label": "Show row"}]}


LABEL_COLUMNS = (
    lead_column("Label", "label"),
    number_column("For training", "training", count),
    number_column("For validation", "held_out", count),
)
FINDING_COLUMNS = (
    number_column("Line", "line", _line),
    lead_column("Problem", "message"),
)


def length_facts(report: Json) -> dict[str, str]:
    """Of a large file, a part of the rows is tokenized, and a part is read if that takes long: the names say so."""
    tokens, lengths, coverage = report["tokens"], report["tokens"]["lengths"], report["coverage"]
    tokenized, cut = coverage["tokenized_rows"], report["cut"]["count"]
    is_whole = coverage["complete"] and tokenized == coverage["rows"]
    trained_percent = 100 * tokens["trained"] / max(tokens["total"], 1)
    return {
        "Rows" if coverage["complete"] else "Rows read": count(coverage["rows"]),
        "Tokens per epoch" if is_whole else f"Tokens of {counted(tokenized, 'row')}": count(tokens["total"]),
        "Learned tokens": f"{count(tokens['trained'])} ({trained_percent:.0f} %)",
        "Median": f"{count(lengths['median'])} tokens",
        "99th percentile": f"{count(lengths['p99'])} tokens",
        "Longest": f"{count(lengths['max'])} tokens",
        "Truncated": f"{counted(cut, 'row')} ({100 * cut / max(tokenized, 1):.1f} %)",
        "Duplicates": counted(report["duplicates"]["rows"], "row"),
    }


def _legend() -> None:
    with box("t-row t-hint"):
        tag("mark", "learned tokens")
        tag("span", "masked tokens", "t-muted")
        tag("span", "special tokens", "t-special")
        tag("s", "truncated", "t-cut")


def _show_row(row: Json) -> None:
    for document in row["documents"]:
        side = f" · {SIDES[document['side']]}" if document["side"] else ""
        with box("t-stack"):
            tokens = f"{count(document['tokens'])} tokens, {count(document['trained_tokens'])} learned"
            cut = f", {count(row['cut_tokens'])} truncated" if row["cut_tokens"] else ""
            tag("div", f"Line {row['line']:,}{side}: {tokens}{cut}", "t-label")
            truncated = [{**segment, "cut": True} for segment in document["truncated_segments"]]
            TokenView([*document["segments"], *([] if document["omitted_tokens"] else truncated)])
            if document["omitted_tokens"]:
                tag("div", f"… {counted(document['omitted_tokens'], 'more token')} not shown", "t-hint")


def _histogram(buckets: Sequence[Json], context_length: int) -> ui.echart:
    longest = max((bucket["most"] for bucket in buckets), default=0)
    label = f"Histogram of lengths up to {longest:,} tokens; context length {context_length:,} tokens"
    return chart(histogram_options(buckets, context_length), label).style(f"height: {HEIGHT_PX}px")


def histogram_options(buckets: Sequence[Json], context_length: int) -> Json:
    """Bars of buckets that exceed the context length have the colour of a warning."""
    labels = [_label(bucket) for bucket in buckets]
    limit = _place(buckets, context_length)
    colour = {":color": "cssColor('--muted')", "fontSize": 11}
    bars = [
        {
            "value": bucket["rows"],
            "itemStyle": {":color": f"cssColor('{'--warn' if bucket['least'] > context_length else '--train'}')"},
        }
        for bucket in buckets
    ]
    align = "right" if limit is not None and limit > len(buckets) / 2 else "left"  # towards the middle of the chart
    line = {
        "symbol": "none",
        "data": [] if limit is None else [{"xAxis": limit}],
        "label": {"formatter": f"context length {context_length:,}", "align": align, **colour},
        "lineStyle": {":color": "cssColor('--bad')"},
    }
    return {
        "animation": False,
        "grid": {"left": 56, "right": 16, "top": 28, "bottom": 44},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": [
            {"type": "category", "data": labels, "name": "Tokens", "nameLocation": "middle", "nameGap": 26,
             "nameTextStyle": colour, "axisLabel": colour},
            {"type": "value", "min": 0, "max": max(len(buckets), 1), "show": False},  # the place of the line
        ],
        "yAxis": {"type": "value", "name": "Rows", "nameTextStyle": colour, "axisLabel": colour,
                  "splitLine": {"lineStyle": {":color": "cssColor('--border')"}}},
        "series": [
            {"type": "bar", "name": "Rows", "data": bars, "barCategoryGap": "8%"},
            {"type": "line", "name": "", "data": [], "xAxisIndex": 1, "markLine": line},
        ],
    }  # fmt: skip


def _place(buckets: Sequence[Json], context_length: int) -> float | None:
    """Where the context length is, in buckets from the left; None beyond the last one."""
    for number, bucket in enumerate(buckets):
        if context_length <= bucket["most"]:
            width = bucket["most"] - bucket["least"] + 1
            return float(number + max(0, context_length - bucket["least"] + 1) / width)
    return None


def _label(bucket: Json) -> str:
    return str(bucket["least"]) if bucket["least"] == bucket["most"] else f"{bucket['least']}–{bucket['most']}"
