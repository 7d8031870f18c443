"""Evaluations: the scores of the base model (before) and of the adapter (after) on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from app.web.api_client import Json
from app.web.components.data_table import Cell, DataTable, lead_column, number_column
from app.web.components.elements import box, button, card, facts, link, note, pill, progress_bar, tag
from app.web.components.forms import select_field, text_field
from app.web.formatting import clean, count, counted, duration, moment, size
from app.web.pages.jobs.panels.panel import Fields, Form, ResultsPanel

TONES = {"queued": "wait", "running": "run", "succeeded": "ok", "failed": "bad", "cancelled": "wait"}
UNFINISHED = ("queued", "running")
MAX_FILES = 100
INTRODUCTION = "Base model and adapter answer the rows; the grader compares each answer with that of the row."
FILE_HINT = "Rows that the training has not seen, such as those of the validation file."
EXPECTED = {"input": "{{ sample.output_text }}", "reference": "{{ item.reference_answer }}"}
GRADERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "exact": (
        "Exact: the answer equals the expected one",
        [{"type": "string_check", "name": "exact", "operation": "eq", **EXPECTED}],
    ),
    "label": ("Label: the answer is a class, with a confusion matrix", [{"type": "label_accuracy", "name": "label"}]),
    "fuzzy_match": (
        "Similarity: how many characters agree",
        [{"type": "text_similarity", "name": "fuzzy_match", "evaluation_metric": "fuzzy_match", **EXPECTED}],
    ),
    "rouge_l": (
        "ROUGE-L: the words in the same order, for summaries",
        [{"type": "text_similarity", "name": "rouge_l", "evaluation_metric": "rouge_l", **EXPECTED}],
    ),
    "json": (
        "JSON: the fields of an object have the expected values",
        [{"type": "json_valid", "name": "json_valid"}, {"type": "json_fields", "name": "json_fields"}],
    ),
    "none": ("None: collect the answers", []),
}
NUMBERS = {
    "max_rows": ("Most rows", "A larger file is sampled; empty: 500."),
    "max_new_tokens": ("Longest answer (tokens)", "Empty: 256."),
}


class EvaluationsPanel(ResultsPanel):
    name, limit = "evaluations", 20
    unfinished = UNFINISHED
    form = Form("New evaluation", "New evaluation", "Evaluate", INTRODUCTION)

    def build(self) -> None:
        super().build()
        with self.actions:
            self._cancel = button("Cancel evaluation", self._ask_to_cancel, "t-danger")
        self._cancel.set_visibility(False)

    async def load(self) -> None:
        await super().load()
        self._cancel.set_visibility(self.may_write and bool(self.in_progress()))

    def nothing(self) -> tuple[str, str]:
        if self.job["evaluation"] is not None:
            return "Evaluation requested", "It is made when the training has succeeded."
        text = "An evaluation compares the answers of base model and adapter to held-out rows."
        return "No evaluations", text if self.job[
            "adapter"
        ] else f"{text} It needs a finished adapter or a kept checkpoint."

    def card(self, one: Json) -> None:
        summary, status, progress = one["summary"], one["status"], one["progress"]
        with card():
            with box("t-row"):
                tag("h2", f"Evaluation of step {count(one['step_number'])}")
                pill(status.capitalize(), TONES[status])
                tag("span", moment(one["created_at"]), "t-muted")
            if one["error"]:
                note("Why it failed", clean(one["error"]["message"], 2_000), "bad")
            if progress and summary is None:
                tag("p", f"{count(progress['answers'])} of {count(progress['total_answers'])} answers", role="status")
                progress_bar("Progress of the evaluation", progress["answers"] / max(progress["total_answers"], 1))
            if summary is not None:
                _show_summary(summary)
            with box("t-row"):
                link("Held-out rows", f"/datasets/{one['file']}")
                for label, key in (("Results (JSONL)", "results_file"), ("Report (Markdown)", "report_file")):
                    if one[key]:
                        link(label, f"/files/{one[key]}/content", download="")

    async def fields(self) -> Fields:
        items = self.view.api.items
        files = [
            *await items("files", MAX_FILES, purpose="evals"),
            *await items("files", MAX_FILES, purpose="fine-tune"),
        ]
        options = {"": "Choose a file"}  # no file of its own accord: the first one may be the training file
        options |= {file["id"]: f"{clean(file['filename'], 60)} ({size(file['bytes'])})" for file in files}
        return partial(_add_fields, options, self.job["validation_file"] or "")

    def _ask_to_cancel(self) -> None:
        (evaluation, *_) = self.in_progress()
        question = "Cancel this evaluation? Its answers are lost."
        self.ask(question, "Cancel evaluation", self.view.api.post, f"{evaluation['id']}/cancel")


def _add_fields(files: dict[str, str], chosen: str) -> Callable[[], Json]:
    file = select_field("File with held-out rows", files, chosen, FILE_HINT)
    labels = {name: label for name, (label, _) in GRADERS.items()}
    grader = select_field("Grader", labels, hint="Further graders: tunery eval --help")
    numbers = {name: text_field(label, hint=hint, kind="number", min="1") for name, (label, hint) in NUMBERS.items()}

    def body() -> Json:
        given = {name: field.value for name, field in numbers.items() if field.value}
        limits = {name: int(text) if text.isdecimal() else text for name, text in given.items()}
        return {"file": file.value, "graders": GRADERS[grader.value][1]} | limits

    return body


def _show_summary(summary: Json) -> None:
    if promotion := summary["promotion"]:
        title = "The adapter may be delivered" if promotion["allowed"] else "The adapter is not delivered"
        note(title, clean(promotion["reason"], 1_000), "ok" if promotion["allowed"] else "warn")
    for warning in summary["warnings"]:
        note("Warning", clean(warning, 1_000), "warn")
    DataTable("Scores by grader", COLUMNS, summary["graders"], key="name")
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


def _score(score: Json | None) -> str:
    return "–" if score is None or score["mean"] is None else f"{score['mean']:.3f}"


def _difference(difference: Json | None) -> Cell | str:
    """The difference, in a tone if its interval excludes zero."""
    if difference is None:
        return "–"
    text = f"{difference['mean']:+.3f}"
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return {"text": text}
    tone = "ok" if low > 0 else "bad" if high < 0 else "wait"
    return {"text": text, "tone": tone, "sub": f"{low:+.3f} to {high:+.3f}"}


def _answers_text(answers: Json) -> str:
    parts = [counted(answers["answered"], "answer")]
    kinds = {"failed": "failed", "cut": "truncated", "empty": "empty"}
    parts += [f"{count(answers[key])} {text}" for key, text in kinds.items() if answers[key]]
    return ", ".join(parts)


COLUMNS = (
    lead_column("Grader", "name", sub="type"),
    number_column("Before: base model", "base", _score),
    number_column("After: adapter", "adapter", _score),
    number_column("Difference (95 % interval)", "difference", _difference),
    number_column("Reference", "reference", _score),
    number_column("Rows", "", lambda grader: count((grader["difference"] or grader["adapter"])["rows"])),
)
