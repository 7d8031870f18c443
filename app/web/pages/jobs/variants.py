"""Variants of a job: up to eight rows of what differs, the plan of each, and all jobs by one request."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from functools import partial
from urllib.parse import quote

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.domain.jobs.create_job import MAX_VARIANTS, SETTINGS, vary
from app.web.api_client import ApiError, Json
from app.web.components.elements import box, busy, button, card, error_note, link, note, refilled, tag
from app.web.components.forms import Field, select_field, text_field
from app.web.frame import View, screen
from app.web.pages.jobs import job_form, wording
from app.web.pages.jobs.job_form import FieldError
from app.web.pages.jobs.new_job import PLAN_SECONDS, REFUSED, VERDICT_TONES, show_device, with_evaluation

FIRST_VARIANTS = 2
MAX_NAME_CHARACTERS = 62  # and a dash with a number
INTRODUCTION = (
    "Each variant is a job with the settings of {name} but for what it states here. An empty field is chosen anew, and "
    "so are alpha, if it is twice the rank, with another rank, and layers and context length with another base model; "
    "the learning rate stays: empty it to have it chosen for the other base model. "
    "All are created at once, and compared as they train."
)
NO_EVALUATION = (
    "The job that they vary has no evaluation, so they are compared by their losses alone. Clone it with a training "
    "file that keeps rows for validation: a clone and its variants are evaluated on them."
)


@screen("/jobs/variants", "Train a variant")
class VariantsPage(View):
    async def build(self) -> None:
        job = await self.api.get(f"fine_tuning/jobs/{quote(self.query('job'), safe='')}")
        prefilled = job_form.from_job(await with_evaluation(self.api, job))
        self._original, self.values = job, prefilled.values
        no_file = {} if self.values["validation_file"] else {"validation_file": job_form.NO_FILE}
        self.body = {"evaluation": None} | job_form.request_body(self.values | no_file, prefilled.kept)
        self.models = {name: name for name in (*(m["id"] for m in await self.api.base_models()), job["model"])}
        self._form_id = secrets.token_hex(16)
        self._rows: list[VariantRow] = []
        tag("h1", "Train a variant")
        tag("p", INTRODUCTION.format(name=wording.name(job)), "t-lede")
        link(f"Back to {wording.name(job)}", f"/jobs/{job['id']}")
        if not self.body["evaluation"]:
            note("No held-out rows", NO_EVALUATION, "warn")
        self._list = box("t-stack")
        with box("t-actions"):
            self._add_button = button("Add a variant", self._add)
            if self.may("jobs:write"):
                self._create_button = button("", self._create, "t-primary")
        self._result = tag("div")
        for _ in range(FIRST_VARIANTS):
            self._add()

    def _add(self) -> None:
        texts = {name: field.value for name, field in self._rows[-1].fields.items()} if self._rows else self.values
        with self._list:
            self._rows.append(VariantRow(self, texts, not self._rows))
        self._renumber()

    def remove(self, row: VariantRow) -> None:
        self._rows.remove(row)
        row.element.delete()
        self._renumber()

    def _renumber(self) -> None:
        for number, row in enumerate(self._rows, start=1):
            row.title.set_text(f"Variant {number}")
            row.remove_button.set_visibility(len(self._rows) > 1)
        self._add_button.set_visibility(len(self._rows) < MAX_VARIANTS)
        if self.may("jobs:write"):
            self._create_button.set_text(f"Create {counted(len(self._rows), 'job')}")

    async def _create(self) -> None:
        variants = [one for row in self._rows if (one := row.variant()) is not None]
        with refilled(self._result):
            if len(variants) < len(self._rows):
                note("A field has a value that cannot be used", "It is marked above.", "bad", role="alert")
                return
            busy("Creating the jobs ...")
        name = (self.values["suffix"] or "variant")[:MAX_NAME_CHARACTERS]
        named = [{"suffix": f"{name}-{number}"} | one for number, one in enumerate(variants, start=1)]
        body = {"job": self.body, "variants": named}
        # of this form with these values: pressed again after a lost response, it creates no second group
        key = hashlib.sha256(f"{self._form_id} {json.dumps(body)}".encode()).hexdigest()
        try:
            group = await self.api.post("fine_tuning/jobs/groups", body, idempotency_key=key)
        except ApiError as error:
            # the rows are counted from 1 on the page
            error.message = re.sub(r"variants\[(\d+)\](\.?)", _numbered, error.message)
            with refilled(self._result):
                error_note(error, "No job was created")
            return
        ui.navigate.to(f"/jobs/compare?group={group['id']}&jobs={self._original['id']}")


def _numbered(path: re.Match[str]) -> str:
    """A variant of a refusal by the number of its row: `variants[2].lora.r` as Variant 3, lora.r."""
    return f"Variant {int(path[1]) + 1}{', ' if path[2] else ''}"


class VariantRow:
    """The fields of one variant, and its plan."""

    def __init__(self, page: VariantsPage, texts: job_form.Values, has_hints: bool) -> None:
        self._page, self._has_hints = page, has_hints
        with card() as self.element:
            with box("t-title"):
                self.title = tag("h2", "")
                self.remove_button = button("Remove", partial(page.remove, self))
            with box("t-form"):
                self.fields = {name: self._field(name, texts[name]) for name in job_form.VARIED}
            self._plan = box("t-stack", aria_live="polite")
        ui.timer(0.05, self._update, once=True)

    def variant(self) -> Json | None:
        """What differs from the original; None, with an error at its field, if a value is not usable."""
        for field in self.fields.values():
            field.set_error("")
        try:
            return job_form.variant(self._page.values, {name: field.value for name, field in self.fields.items()})
        except FieldError as error:
            name, message = error.args
            self.fields[name].set_error(message)
            return None

    def _field(self, name: str, text: str) -> Field:
        title, hint = SETTINGS[name].title, SETTINGS[name].help if self._has_hints else ""
        if name == "model":
            return select_field(title, self._page.models, text, hint, self._update)
        return text_field(title, text, hint, self._update)

    async def _update(self) -> None:
        variant = self.variant()
        with refilled(self._plan):
            if variant is None:
                return
            waiting = busy("Counting tokens and memory ...")
        body, _ = vary(self._page.body, variant)
        refusal: ApiError | None = None
        plan: Json = {}
        try:
            plan = await self._page.api.post("fine_tuning/jobs/plan", body, timeout_seconds=PLAN_SECONDS)
        except ApiError as error:
            refusal = error
        if waiting.is_deleted:  # a later change has its own plan
            return
        with refilled(self._plan):
            if refusal is not None:
                error_note(refusal, None if refusal.is_unreachable else REFUSED)
                return
            if not variant:
                note("Nothing differs", "Change a field, or this variant trains the same as the job.", "warn")
            note(plan["message"], "", VERDICT_TONES.get(plan["verdict"], ""))
            for device in plan["devices"]:
                show_device(device)
