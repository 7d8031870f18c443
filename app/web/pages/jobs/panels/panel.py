"""What the panels of a job share: a list that is shown again when it changes, a form for another object, questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from nicegui import ui

from app.web.api_client import Json
from app.web.components.data_table import DataTable, TableColumn, lead_column, number_column, wide_column
from app.web.components.elements import box, button, card, note, pill, refilled, tag
from app.web.components.forms import ask, form_dialog, select_field
from app.web.formatting import count, loss, moment, size
from app.web.frame import View
from app.web.pages.jobs import wording

POLL_SECONDS = 2.0
MAX_CHECKPOINTS = 100
UNFINISHED = ("queued", "running")


class Panel:
    """A tab: it shows its subject when it is opened, and again after each change of the job."""

    def __init__(self, view: View, job: Json) -> None:
        self.view, self.job = view, job
        self.api = view.api
        self.path = f"fine_tuning/jobs/{job['id']}"
        self.build()

    def build(self) -> None:
        """Add the elements that stay."""

    async def refresh(self, job: Json) -> None:
        self.job = job
        await self.load()

    async def load(self) -> None:
        """Request the subject and show it."""


class ListPanel(Panel):
    """The objects of one list of the job, as rows of a table or each in a card. While one of them is unfinished, they
    are requested again: their changes are none of the job.
    """

    name: str  # of the list
    limit = 100
    params: Json = {}  # noqa: RUF012
    unfinished: tuple[str, ...] = ()
    caption = ""  # of the table
    columns: Sequence[TableColumn] = ()
    key = "id"

    def build(self) -> None:
        self.path = f"{self.path}/{self.name}"
        self.shown: list[Json] = []
        self._body = box("t-stack")
        if self.columns:
            self.table = DataTable(self.caption, self.columns, key=self.key)
        if self.unfinished:
            ui.timer(POLL_SECONDS, self._poll)

    def card(self, one: Json) -> None:
        """Show an object, where there is no table."""
        raise NotImplementedError

    def nothing(self) -> tuple[str, str] | None:
        """The title and the text of a note in place of an empty list."""
        return None

    async def load(self) -> None:
        found = await self.request()
        if not found or found != self.shown:
            self.shown = found
            self.show()

    async def request(self) -> list[Json]:
        return await self.api.items(self.path, self.limit, **self.params)

    def show(self) -> None:
        """Show the objects `shown`."""
        nothing = None if self.shown else self.nothing()
        if self.columns:
            self.table.show(self.shown)
            self.table.set_visibility(nothing is None)
        self._body.set_visibility(nothing is not None or not self.columns)
        with refilled(self._body):
            if nothing:
                note(*nothing)
            elif not self.columns:
                for one in self.shown:
                    self.card(one)

    def in_progress(self) -> list[Json]:
        return [one for one in self.shown if one["status"] in self.unfinished]

    async def _poll(self) -> None:
        if self.in_progress():
            await self.load()


class FormTexts(NamedTuple):
    button: str
    title: str
    submit: str
    introduction: str = ""


class ResultsPanel(ListPanel):
    """What is made of a checkpoint on request. Its button is there while the key may write and a checkpoint is kept."""

    form: FormTexts
    unfinished = UNFINISHED

    def build(self) -> None:
        self.may_write = self.view.may("jobs:write")
        self._dialogs = box("")
        with box("t-actions") as self.actions:
            self._new = button(self.form.button, self._open_form, "t-primary")
        self._new.set_visibility(False)
        super().build()

    async def refresh(self, job: Json) -> None:
        if self.may_write:
            self._checkpoints = await checkpoint_options(self.view, job)
            self._new.set_visibility(bool(self._checkpoints))
        await super().refresh(job)

    def title(self, one: Json) -> str:
        raise NotImplementedError

    def add_actions(self, one: Json) -> None:
        """Add the buttons of an object."""

    def content(self, one: Json) -> None:
        raise NotImplementedError

    def card(self, one: Json) -> None:
        with card():
            with box("t-row"):
                tag("h2", f"{self.title(one)} of step {count(one['step_number'])}")
                pill(one["status"].capitalize(), wording.TONES[one["status"]])
                tag("span", moment(one["created_at"]), "t-muted")
                self.add_actions(one)
            if one["error"]:
                note("Why it failed", one["error"]["message"], "bad")
            self.content(one)

    async def choices(self) -> dict[str, str] | None:
        """The options of the form's first field; None after a note on why there is no form."""
        return {}

    def add_fields(self, choices: dict[str, str]) -> Callable[[], Json]:
        """Add the fields of the form below that of the checkpoint. The result returns the body that they make."""
        raise NotImplementedError

    async def _open_form(self) -> None:
        with refilled(self._dialogs):
            choices = await self.choices()
        if choices is None:
            return

        async def send() -> None:
            await self.api.post(self.path, {"checkpoint": checkpoint.value} | body())
            await self.load()

        with self._dialogs, form_dialog(self.form.title, self.form.submit, send):
            if self.form.introduction:
                tag("p", self.form.introduction)
            checkpoint = select_field("Checkpoint", self._checkpoints)
            body = self.add_fields(choices)

    def ask(self, question: str, label: str, request: Callable[[str], Awaitable[Json]], path: str) -> None:
        """Ask before a request about one of the objects, whose path follows that of the list."""

        async def act() -> None:
            try:
                await request(f"{self.path}/{path}")
            finally:
                await self.load()  # also without an object that another tab has deleted

        with self._dialogs:
            ask(question, label, act)


async def checkpoint_options(view: View, job: Json) -> dict[str, str]:
    """Texts of the kept checkpoints by id, the result of the job first: it is what a call without one takes."""
    found = await view.api.items(f"fine_tuning/jobs/{job['id']}/checkpoints", MAX_CHECKPOINTS)
    texts = {}
    for one in sorted(found, key=lambda one: one["fine_tuned_model_checkpoint"] != job["fine_tuned_model"]):
        valid = one["metrics"].get("full_valid_loss")
        parts = (
            f"Step {count(one['step_number'])}",
            "" if valid is None else f"validation loss {loss(valid)}",
            "the best" if one["best"] else "",
            "the result" if one["fine_tuned_model_checkpoint"] == job["fine_tuned_model"] else "",
        )
        texts[one["id"]] = ", ".join(filter(None, parts))
    return texts


FILE_COLUMNS = (
    lead_column("File", "", lambda file: {"text": file["filename"]} | download(file["id"])),
    number_column("Size", "bytes", size),
    wide_column("SHA-256", "sha256"),
)


def download(file_id: str) -> Json:
    """The link of a cell that downloads a file."""
    return {"href": f"/files/{file_id}/content", "download": ""}
