"""The result of an evaluation: fields, confusion matrix or distribution of scores, and the rows with their answers."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from app.web.api_client import ApiClient, ApiError, Json
from app.web.components.data_table import Cell, DataTable, lead_column, number_column, text_column, wide_column
from app.web.components.elements import box, button, card, refilled, tabs, tag
from app.web.components.forms import filter_select
from app.web.formatting import clean, count
from app.web.pages.chat_rows import show_chat

PAGE_ROWS = 10
MAX_SHORT_CHARACTERS = 240  # of a text in the table; an open row has all of it
MAX_LABELS, MAX_LABEL_CHARACTERS = 12, 24  # of a matrix; of more labels the most frequent confusions are shown
MAX_CONFUSIONS = 20
MODELS = {"adapter": "Adapter", "base": "Base model"}
FILTERS = {"": "All rows", "got_worse": "Got worse", "still_wrong": "Still wrong"}
VERDICTS = {
    "right": ("Right", "ok"),
    "got_worse": ("Got worse", "bad"),
    "still_wrong": ("Still wrong", "warn"),
    "unscored": ("No score", "wait"),
}


def show_scores(evaluation: Json) -> None:
    """For each grader the fields of its objects, and the confusion matrix or the distribution of its scores."""
    for grader in evaluation["summary"]["graders"]:
        if grader["fields"]:
            with card(f"Right fields: {grader['name']}"):
                DataTable("Right fields", FIELD_COLUMNS, grader["fields"], key="field")
        if grader["confusion"] is not None:
            with card(f"Expected and answered: {grader['name']}"):
                tabs("Answers of which model", MODELS, partial(_show_confusion, grader["confusion"]))
        elif distribution := grader.get("distribution"):
            _show_distribution(grader["name"], distribution)


def _show_confusion(confusion: Json, model: str) -> None:
    labels, counts = confusion[model]["labels"], confusion[model]["counts"]
    answered = [*labels, "another answer"]
    if len(labels) > MAX_LABELS:
        confused = [
            {"id": f"{row}-{column}", "expected": labels[row], "answered": answered[column], "rows": rows}
            for row, counted_row in enumerate(counts)
            for column, rows in enumerate(counted_row)
            if rows and row != column
        ]
        confused.sort(key=lambda one: -int(one["rows"]))
        tag("p", f"The most frequent wrong answers among {len(labels)} labels.", "t-muted")
        DataTable("Wrong answers", CONFUSED_COLUMNS, confused[:MAX_CONFUSIONS])
        return
    rows = [{"id": label, "number": number, "counts": counts[number]} for number, label in enumerate(labels)]
    columns = [lead_column("Expected", "id", partial(clean, max_characters=MAX_LABEL_CHARACTERS))]
    columns += [
        number_column(clean(label, MAX_LABEL_CHARACTERS), "", partial(_confusion_cell, column))
        for column, label in enumerate(answered)
    ]
    tag("p", "A line for each expected label, a column for each answer.", "t-muted")
    DataTable("Confusion matrix", columns, rows)


def _confusion_cell(column: int, row: Json) -> Cell | str:
    rows = row["counts"][column]
    return {"text": count(rows), "tone": "ok" if column == row["number"] else "bad"} if rows else "–"


def _show_distribution(grader: str, found: Json) -> None:
    size = (found["high"] - found["low"]) / len(found["adapter"])
    bounds = [found["low"] + size * number for number in range(len(found["adapter"]) + 1)]
    most = max(1, *found["adapter"], *found["base"])
    rows = [
        {"id": str(number), "part": f"{bounds[number]:.2g} to {bounds[number + 1]:.2g}"}
        | {model: {"text": count(rows := found[model][number]), "progress": rows / most} for model in MODELS}
        for number in reversed(range(len(found["adapter"])))
    ]
    with card(f"Distribution of scores: {grader}"):
        columns = [lead_column("Score", "part")]
        columns += [text_column(label, model, lambda cell: cell) for model, label in MODELS.items()]
        DataTable("Distribution of scores", columns, rows)


class RowsTable:
    """The rows of an evaluation, with a filter; an open one has its prompt as a chat, and the whole answers."""

    def __init__(self, api: ApiClient, path: str) -> None:
        """`path` is that of the evaluation."""
        self._api, self._path = api, f"{path}/rows"
        self._rows: list[Json] = []
        with box("t-stack"):
            with box("t-filters"):
                tag("h2", "Rows")
                self._filter = filter_select("Rows shown", FILTERS, "", self.load)
                self._count = tag("span", "", "t-muted", role="status")
            self._opened = box("", tabindex="-1")
            self._table = DataTable("Rows of the evaluation", ROW_COLUMNS)
            self._table.on_event("press", self._open)
            self._more = button("Show more rows", self._load_more)

    async def load(self) -> None:
        self._rows = []
        self._opened.clear()
        await self._load_more()

    async def _load_more(self) -> None:
        after = self._rows[-1]["id"] if self._rows else None
        wanted = self._filter.value
        try:
            page = await self._api.get(self._path, limit=PAGE_ROWS, after=after, filter=wanted or None)
        except ApiError as error:  # such as of a deleted file
            page = {"data": [], "has_more": False}
            self._count.set_text(error.message)
        else:
            if wanted != self._filter.value:  # a later filter has its own answer
                return
            self._rows += page["data"]
            more = "; more follow" if page["has_more"] else ""
            self._count.set_text(f"{count(len(self._rows))} shown{more}")
        self._table.show(self._rows)
        self._more.set_visibility(page["has_more"])

    def _open(self, row_id: str, _: str) -> None:
        row = next(one for one in self._rows if one["id"] == row_id)
        messages = row["messages"] or [{"role": "user", "content": row["question"]}]
        answers = {"expected answer": row["reference_answer"]}
        answers |= {MODELS.get(model, model).lower(): _answer(one) for model, one in row["answers"].items()}
        with refilled(self._opened), box("t-opened", role="group", aria_label=f"Row of line {row['line']:,}"):
            show_chat(
                f"Line {row['line']:,}",
                [*messages, *({"role": role, "content": text} for role, text in answers.items() if text is not None)],
            )
            button("Close", self._opened.clear)
        ui.run_javascript(f"showElement('{self._opened.html_id}')")


def _answer(answer: Json) -> str:
    return str(answer["text"] if answer["text"] is not None else f"No answer: {answer['error']}")


def _short(text: object) -> str:
    """In one line: a line end would be shown as an escape."""
    return clean("" if text is None else " ".join(str(text).split()), MAX_SHORT_CHARACTERS) or "–"


def _line(row: Json) -> Cell:
    return {"text": f"Line {row['line']:,}", "buttons": [{"name": "open", "label": "Open"}]}


def _verdict(verdict: str) -> Cell:
    text, tone = VERDICTS[verdict]
    return {"text": text, "tone": tone}


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _scores(scores: Json) -> str:
    """From the base model to the adapter."""

    def number(score: float | None) -> str:
        return "none" if score is None else f"{score:.3g}"

    texts = {name: f"{number(one['base'])} → {number(one['adapter'])}" for name, one in scores.items()}
    return "; ".join(texts.values() if len(texts) == 1 else (f"{name} {text}" for name, text in texts.items())) or "–"


CONFUSED_COLUMNS = (
    lead_column("Expected", "expected", _short),
    text_column("Answered", "answered", _short),
    number_column("Rows", "rows", count),
)
FIELD_COLUMNS = (
    lead_column("Field", "field", _short),
    number_column("Rows", "rows", count),
    number_column("Base model", "base", _share),
    number_column("Adapter", "adapter", _share),
)
ROW_COLUMNS = (
    lead_column("Row", "", _line),
    text_column("Verdict", "verdict", _verdict),
    wide_column("Question", "question", _short),
    text_column("Expected", "reference_answer", _short),
    wide_column("Adapter", "answers.adapter", lambda answer: _short(_answer(answer))),
    wide_column("Base model", "answers.base", lambda answer: _short(_answer(answer))),
    text_column("Score, base → adapter", "scores", _scores),
)
