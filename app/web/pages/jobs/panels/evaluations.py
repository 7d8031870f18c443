"""Evaluations: the scores of the base model (before) and of the adapter (after) on held-out rows."""

from __future__ import annotations

import time
from collections.abc import Callable

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.domain.evaluations.graders import OUTPUT, REFERENCE, EvaluationSettings
from app.domain.jobs.create_job import Setting
from app.web.api_client import Json
from app.web.components.data_table import Cell, DataTable, lead_column, number_column
from app.web.components.elements import box, button, facts, link, note, progress_bar, refilled, tag
from app.web.components.forms import select_field, text_field
from app.web.formatting import count, duration
from app.web.pages.jobs import wording
from app.web.pages.jobs.panels.panel import FormTexts, ResultsPanel
from app.web.pages.jobs.panels.result import RowsTable, show_scores

MAX_FILES = 100
PURPOSES = ("evals", "fine-tune")
INTRODUCTION = "Base model and adapter answer the rows; the grader compares each answer with that of the row."
FILE_HINT = "Rows that the training has not seen, such as those of the validation file."
EXPECTED = {"input": OUTPUT, "reference": REFERENCE}
GRADERS: dict[str, tuple[str, list[Json]]] = {
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
NUMBERS = {name: field for name, field in EvaluationSettings.model_fields.items() if field.annotation is int}


class EvaluationsPanel(ResultsPanel):
    name, limit = "evaluations", 20
    form = FormTexts("New evaluation", "New evaluation", "Evaluate", INTRODUCTION)

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
            return wording.EVALUATIONS["requested"]
        text = "An evaluation compares the answers of base model and adapter to held-out rows."
        return "No evaluations", text + (
            "" if self.job["adapter"] else " It needs a finished adapter or a kept checkpoint."
        )

    def title(self, _: Json) -> str:
        return "Evaluation"

    def content(self, one: Json) -> None:
        progress = one["progress"]
        if one["summary"] is not None:
            _show_summary(one)
            self._offer_rows(one)
        elif progress:
            tag("p", progress_text(one), role="status")
            progress_bar("Progress of the evaluation", progress["answers"] / max(progress["total_answers"], 1))
        with box("t-row"):
            link("Held-out rows", f"/datasets/{one['file']}")
            for label, key in (("Results (JSONL)", "results_file"), ("Report (Markdown)", "report_file")):
                if one[key]:
                    link(label, f"/files/{one[key]}/content", download="")

    async def choices(self) -> dict[str, str]:
        files = [one for purpose in PURPOSES for one in await self.api.items("files", MAX_FILES, purpose=purpose)]
        # no file of its own accord: the first one may be the training file
        return {"": "Choose a file"} | wording.file_options(files, [self.job["validation_file"]])

    def add_fields(self, choices: dict[str, str]) -> Callable[[], Json]:
        file = select_field("File with held-out rows", choices, self.job["validation_file"] or "", FILE_HINT)
        labels = {name: label for name, (label, _) in GRADERS.items()}
        grader = select_field("Grader", labels, hint="The command line has further ones.")
        numbers = {
            name: text_field(
                (one := Setting.of(name, field)).title,
                hint=f"{one.help} Empty: {field.default}.",
                kind="number",
                min="1",
            )
            for name, field in NUMBERS.items()
        }

        def body() -> Json:
            given = {name: field.value for name, field in numbers.items() if field.value}
            limits = {name: int(text) if text.isdecimal() else text for name, text in given.items()}
            return {"file": file.value, "graders": GRADERS[grader.value][1]} | limits

        return body

    def _offer_rows(self, one: Json) -> None:
        """Those of the newest evaluation are shown at once."""
        path = f"{self.path}/{one['id']}"
        if one is next(each for each in self.shown if each["summary"] is not None):
            ui.timer(0, RowsTable(self.api, path).load, once=True)
        else:
            rows = box("t-stack")

            async def show() -> None:
                with refilled(rows):
                    await RowsTable(self.api, path).load()

            with rows:
                button("Show rows", show)

    def _ask_to_cancel(self) -> None:
        (evaluation, *_) = self.in_progress()
        question = "Cancel this evaluation? Its answers are lost."
        self.ask(question, "Cancel evaluation", self.api.post, f"{evaluation['id']}/cancel")


def progress_text(one: Json) -> str:
    """How many answers of all are there, and the time that remains."""
    progress, rows = one["progress"], one["plan"]["rows"]
    text = f"{count(progress['answers'])} of {counted(progress['total_answers'], 'answer')}"
    text += f" ({counted(rows, 'row')}, 2 models)" if rows else ""
    if one["estimated_finish"] is None or (seconds := one["estimated_finish"] - time.time()) <= 0:
        return text
    return f"{text}, {'about' if progress['answers'] else 'at most'} {duration(seconds)} left"


def _show_summary(evaluation: Json) -> None:
    summary = evaluation["summary"]
    if evaluation["headline"] is not None:
        tag("p", evaluation["headline"]["text"], "t-headline")
    if promotion := summary["promotion"]:
        title = "The adapter may be delivered" if promotion["allowed"] else "The adapter is not delivered"
        note(title, promotion["reason"], "ok" if promotion["allowed"] else "warn")
    for warning in summary["warnings"]:
        note("Warning", warning, "warn")
    if summary["graders"]:
        DataTable("Scores by grader", COLUMNS, summary["graders"], key="name")
    show_scores(evaluation)
    answers = summary["answers"]
    facts(
        {
            "Rows": f"{count(summary['rows'])} of {count(summary['rows_in_file'])}",
            "Precision": summary["precision"],
            "Duration": duration(summary["seconds"]),
            "Base model": _answers_text(answers["base"]),
            "Adapter": _answers_text(answers["adapter"]),
        }
    )


def _score(score: Json | None) -> str:
    return "–" if score is None or score["mean"] is None else f"{score['mean']:.3f}"


def difference_cell(difference: Json | None) -> Cell | str:
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
    number_column("Difference (95 % interval)", "difference", difference_cell),
    number_column("Reference", "reference", _score),
    number_column("Rows", "", lambda grader: count((grader["difference"] or grader["adapter"])["rows"])),
)
