"""Evaluations: the scores of the base model (before) and of the adapter (after) on held-out rows."""

from __future__ import annotations

from typing import Any

from app.web.components.data_table import DataTable, Row, column
from app.web.components.elements import card, code_block, facts, link, note, pill, progress_bar, tag
from app.web.formatting import clean, count, counted, duration, moment
from app.web.pages.jobs.panels.opened_job import OpenedJob

MAX_EVALUATIONS = 20
TONES = {"queued": "wait", "running": "run", "succeeded": "ok", "failed": "bad", "cancelled": "wait"}
COLUMNS = (
    column("grader", "Grader", lead=True),
    column("base", "Before: base model", "number"),
    column("adapter", "After: adapter", "number"),
    column("difference", "Difference (95 % interval)", "number"),
    column("reference", "Reference", "number"),
    column("rows", "Rows", "number"),
)

Json = dict[str, Any]


class EvaluationsPanel:
    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        self._shown: list[Json] | None = None
        self._body = tag("div", classes="t-stack")

    async def refresh(self, job: Json) -> None:
        page = await self._view.api.get(f"fine_tuning/jobs/{job['id']}/evaluations", limit=MAX_EVALUATIONS)
        if page["data"] == self._shown:
            return
        self._shown = page["data"]
        self._body.clear()
        with self._body:
            for evaluation in page["data"]:
                _show(evaluation)
            if not page["data"]:
                _show_none(job)


def _show_none(job: Json) -> None:
    requested = job["evaluation"]
    if requested is not None:
        note("Evaluation requested", "It is made when the training has succeeded.")
        return
    text = "An evaluation compares the answers of base model and adapter to held-out rows. For a finished adapter:"
    note("No evaluations", text)
    code_block(f"tunery eval {job['id']} --file HELD_OUT.jsonl")


def _show(evaluation: Json) -> None:
    summary, status = evaluation["summary"], evaluation["status"]
    with card():
        with tag("div", classes="t-row"):
            tag("h2", f"Evaluation of step {count(evaluation['step_number'])}")
            pill(status.capitalize(), TONES[status])
            tag("span", moment(evaluation["created_at"]), "t-muted")
        if evaluation["error"]:
            note("Why it failed", clean(evaluation["error"]["message"], 2_000), "bad")
        if evaluation["progress"] and summary is None:
            progress = evaluation["progress"]
            tag("p", f"{count(progress['answers'])} of {count(progress['total_answers'])} answers", role="status")
            progress_bar("Progress of the evaluation", progress["answers"] / max(progress["total_answers"], 1))
        if summary is not None:
            _show_summary(summary)
        with tag("div", classes="t-row"):
            link("Held-out rows", f"/datasets/{evaluation['file']}")
            for label, key in (("Results (JSONL)", "results_file"), ("Report (Markdown)", "report_file")):
                if evaluation[key]:
                    link(label, f"/files/{evaluation[key]}/content", download="")


def _show_summary(summary: Json) -> None:
    promotion = summary["promotion"]
    if promotion is not None:
        title = "The adapter may be delivered" if promotion["allowed"] else "The adapter is not delivered"
        note(title, clean(promotion["reason"], 1_000), "ok" if promotion["allowed"] else "warn")
    for warning in summary["warnings"]:
        note("Warning", clean(warning, 1_000), "warn")
    DataTable("Scores by grader", COLUMNS, [_row(grader) for grader in summary["graders"]])
    answers = summary["answers"]
    facts(
        {
            "Rows": f"{count(summary['rows'])} of {count(summary['rows_in_file'])}",
            "Precision": clean(summary["precision"], 120),
            "Duration": duration(summary["seconds"]),
            "Base model": _answers_text(answers["base"]),
            "Adapter": _answers_text(answers["adapter"]),
        }
    )


def _row(grader: Json) -> Row:
    difference = grader["difference"]
    return {
        "id": grader["name"],
        "grader": {"text": clean(grader["name"], 80), "sub": clean(grader["type"], 40)},
        "base": _score(grader["base"]),
        "adapter": _score(grader["adapter"]),
        "difference": _difference(difference) if difference else "–",
        "reference": _score(grader["reference"]) if grader["reference"] else "–",
        "rows": count(difference["rows"]) if difference else count(grader["adapter"]["rows"]),
    }


def _score(score: Json) -> str:
    return "–" if score["mean"] is None else f"{score['mean']:.3f}"


def _difference(difference: Json) -> Row:
    """The difference, in a tone if its interval excludes zero."""
    text = f"{difference['mean']:+.3f}"
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return {"text": text}
    tone = "ok" if low > 0 else "bad" if high < 0 else "wait"
    return {"text": text, "tone": tone, "sub": f"{low:+.3f} to {high:+.3f}"}


def _answers_text(answers: Json) -> str:
    parts = [counted(answers["answered"], "answer")]
    parts += [f"{count(answers[key])} {key}" for key in ("failed", "cut", "empty") if answers[key]]
    return ", ".join(parts)
