"""Evaluations: the scores of the base model (before) and of the adapter (after) on held-out rows."""

from __future__ import annotations

from typing import Any

from app.web.components.data_table import DataTable, Row, column
from app.web.components.elements import button, card, facts, link, note, pill, progress_bar, tag
from app.web.components.forms import select_field, text_field
from app.web.formatting import clean, count, counted, duration, moment, size
from app.web.pages.jobs.dialogs import ask, form_dialog
from app.web.pages.jobs.panels.checkpoint_options import CheckpointButton
from app.web.pages.jobs.panels.opened_job import OpenedJob, refresh_while

MAX_EVALUATIONS = 20
TONES = {"queued": "wait", "running": "run", "succeeded": "ok", "failed": "bad", "cancelled": "wait"}
UNFINISHED = ("queued", "running")
MAX_FILES = 100
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
        self._view, self._job = opened.view, opened.job
        self._path = f"fine_tuning/jobs/{opened.job['id']}/evaluations"
        self._shown: list[Json] | None = None
        self._dialogs = tag("div")
        with tag("div", classes="t-actions"):
            self._new = CheckpointButton(opened, "New evaluation", self._open_form)
            self._cancel_button = button("Cancel evaluation", self._ask_to_cancel, "t-danger")
        self._cancel_button.set_visibility(False)
        self._body = tag("div", classes="t-stack")
        refresh_while(lambda: bool(self._unfinished()), self._load)

    async def refresh(self, job: Json) -> None:
        self._job = job
        await self._new.refresh(job)
        await self._load()

    def _unfinished(self) -> list[Json]:
        return [one for one in self._shown or () if one["status"] in UNFINISHED]

    async def _load(self) -> None:
        page = await self._view.api.get(self._path, limit=MAX_EVALUATIONS)
        if page["data"] == self._shown:
            return
        self._shown = page["data"]
        self._cancel_button.set_visibility(self._new.may_write and bool(self._unfinished()))
        self._body.clear()
        with self._body:
            for evaluation in page["data"]:
                _show(evaluation)
            if not page["data"]:
                _show_none(self._job)

    async def _open_form(self) -> None:
        files = [
            *await self._view.api.items("files", MAX_FILES, purpose="evals"),
            *await self._view.api.items("files", MAX_FILES, purpose="fine-tune"),
        ]
        names = {file["id"]: f"{clean(file['filename'], 60)} ({size(file['bytes'])})" for file in files}

        async def send() -> None:
            body: Json = {"file": file.value, "graders": GRADERS[grader.value][1], "checkpoint": checkpoint.value}
            for name, field in (("max_rows", max_rows), ("max_new_tokens", longest)):
                if field.value:
                    body[name] = int(field.value) if field.value.isdecimal() else field.value
            await self._view.api.post(self._path, body)
            await self._load()

        with self._dialogs, form_dialog("New evaluation", "Evaluate", send):
            tag("p", "Base model and adapter answer the rows; the grader compares each answer with that of the row.")
            checkpoint = self._new.select()
            options = {"": "Choose a file"} | names  # no file of its own accord: the first one may be the training file
            file = select_field("File with held-out rows", options, self._job["validation_file"] or "", FILE_HINT)
            labels = {name: label for name, (label, _) in GRADERS.items()}
            grader = select_field("Grader", labels, hint="Further graders: tunery eval --help")
            max_rows = text_field("Most rows", hint="A larger file is sampled; empty: 500.", kind="number", min="1")
            longest = text_field("Longest answer (tokens)", hint="Empty: 256.", kind="number", min="1")

    def _ask_to_cancel(self) -> None:
        (evaluation, *_) = self._unfinished()

        async def cancel() -> None:
            await self._view.api.post(f"{self._path}/{evaluation['id']}/cancel")
            await self._load()

        with self._dialogs:
            ask("Cancel this evaluation? Its answers are lost.", "Cancel evaluation", cancel)


def _show_none(job: Json) -> None:
    if job["evaluation"] is not None:
        note("Evaluation requested", "It is made when the training has succeeded.")
        return
    text = "An evaluation compares the answers of base model and adapter to held-out rows."
    note("No evaluations", text if job["adapter"] else f"{text} It needs a finished adapter or a kept checkpoint.")


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
    kinds = {"failed": "failed", "cut": "truncated", "empty": "empty"}
    parts += [f"{count(answers[key])} {text}" for key, text in kinds.items() if answers[key]]
    return ", ".join(parts)
