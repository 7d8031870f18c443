"""A new job: the fields that people change, the live plan beside them, and the same request as a command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from nicegui import ui

from app.domain.error_text.json_text import counted
from app.domain.jobs.create_job import SETTINGS, without
from app.domain.methods import METHODS
from app.web.api_client import ApiClient, ApiError, Json
from app.web.components.elements import (
    box,
    busy,
    button,
    card,
    code_block,
    error_note,
    facts,
    folded,
    link,
    note,
    pill,
    refilled,
    tabs,
    tag,
)
from app.web.components.forms import Field, checkbox, select_field, text_area, text_field
from app.web.formatting import count, size, until
from app.web.frame import View, screen
from app.web.pages.jobs import job_form, wording
from app.web.pages.jobs.job_form import FieldError, Prefilled

MAX_FILES = 200
FILES_HINT = f"The {MAX_FILES} newest; an older dataset has a button for a new job on its page."
HELD_OUT_ROWS = "The held-out rows of the training file, if it has any"
MORE_HINT = f"Other hyperparameters as JSON, such as {job_form.EXAMPLES['more']}."
PLAN_SECONDS = 310.0  # the API stops counting tokens after 300 s, with what to do
VERDICT_TONES = {"fits": "ok", "no_device_fits": "bad", "no_worker": "warn"}
REFUSED, NO_PLAN = "This job would be refused", "There is no plan"
HINTS = {
    "model": "A base model, or an ft: model to train further.",
    "validation_file": "The loss is measured on its rows, which are not trained. After the training, base model and "
    "adapter also answer the held-out rows of the training file.",
    "sample_prompts": f"{SETTINGS['sample_prompts'].help} One per line.",
    "chat_template_kwargs": f"{SETTINGS['chat_template_kwargs'].help} As JSON, such as "
    f"{job_form.EXAMPLES['chat_template_kwargs']}.",
}
QUANTIZATIONS = {"4": "QLoRA: base model in 4 bits", "16": "LoRA: base model in 16 bits"}

COMMANDS = {"curl": job_form.curl, "Python": job_form.python, "Command line": job_form.command}


@screen("/jobs/new", "New job")
class NewJobPage(View):
    async def build(self) -> None:
        source = quote(self.query("repair") or self.query("clone"), safe="")
        prefilled = Prefilled({"training_file": self.query("file")})
        if source:
            job = await with_evaluation(self.api, await self.api.get(f"fine_tuning/jobs/{source}"))
            prefilled = job_form.repaired(job) if self.query("repair") else job_form.from_job(job)
        self._initial, self._kept = prefilled.values, prefilled.kept
        self._fields: dict[str, Field] = {}
        self._request: Json = {}  # of the commands
        self._form_id = secrets.token_hex(16)
        tag("h1", "New job")
        if not self.may("jobs:write"):
            note("This key may not create jobs", "It lacks the scope jobs:write; it can plan one.", "warn")
        if prefilled.changes:
            note("Changed compared with the failed job", "\n".join(prefilled.changes), "warn")
        if prefilled.advice:
            note("Nothing is changed yet compared with the failed job", prefilled.advice, "warn")
        models = await self.api.base_models()
        files = await self.api.items("files", MAX_FILES, purpose="fine-tune")
        self._files: dict[str, Json] = {file["id"]: file for file in files}
        for name in ("training_file", "validation_file"):
            await self._add_older_file(name)
        training_file = self._files.get(self._initial.get("training_file", ""), {})
        if source and not self._initial.get("validation_file") and "held_out_file_id" in training_file:
            self._initial["validation_file"] = job_form.NO_FILE  # as in the original
        chosen = [self._initial.get(name) for name in ("training_file", "validation_file")]
        with box("t-create"):  # in this order on a phone: the plan is read before the button is pressed
            with card("Job"):
                self._build_fields(models, wording.file_options(self._files.values(), chosen))
                await self._build_kept()
            with card("Plan"):
                self._verdict = box("t-stack", aria_live="polite")  # without the numbers below
                with box("") as self._details:
                    self._plan = folded("Details of the plan")  # it stays open while the plan changes
            with box("t-stack"):
                with box("t-actions"):
                    if self.may("jobs:write"):
                        button("Create job", self._create, "t-primary")
                self._result = tag("div")
            with card("The same request"):
                self._build_request()
        ui.timer(0.05, partial(self._update, is_marked=False), once=True)  # a form that was just opened has no errors

    async def _add_older_file(self, name: str) -> None:
        """Offer the file that the form begins with, also if it is none of the newest; name one that was deleted."""
        file_id = self._initial.get(name, "")
        if not file_id or file_id in self._files:
            return
        try:
            self._files[file_id] = await self.api.get(f"files/{quote(file_id, safe='')}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            note(f"The {name.replace('_', ' ')} was deleted", "Choose another one.", "warn")

    def _build_fields(self, models: list[Json], files: dict[str, str]) -> None:
        names = [*(model["id"] for model in models), self._initial.get("model", "")]
        model_names = {name: name for name in names if name}
        if not model_names:
            note("No base model", "An operator registers one: tunery models add NAME DIRECTORY", "warn")
        if not files:
            with note(
                "No training file yet", "Upload a JSONL or CSV file first; its page leads back to this form.", "warn"
            ):
                link("Upload a dataset", "/datasets", "t-button")
        quantizations = dict(QUANTIZATIONS)
        kept = [name for name in self._kept if name.startswith("quantization.")]
        if original := [f"{name.partition('.')[2]} {self._kept[name]}" for name in kept]:
            quantizations[job_form.AS_ORIGINAL] = f"As in the original: {', '.join(original)}"
        self._choices = {
            "model": model_names,
            "training_file": {"": "Choose a file" if files else "No file yet"} | files,
            "validation_file": {"": HELD_OUT_ROWS, job_form.NO_FILE: "None"} | files,
            "method": {method.name: method.title for method in METHODS.values()},
            "quantization": quantizations,
            "lora.experts": {"": "No", "true": "Yes"},
        }
        if self.session.is_admin:
            link("Add a base model", "/admin/models")
        with box("t-form"):
            self._add(*job_form.MAIN, training_file=FILES_HINT if len(files) >= MAX_FILES else "")
        with folded("More settings"), box("t-form"):
            self._add(*job_form.MORE)
            self._fields["more"] = text_area(
                "More hyperparameters", self._initial.get("more", ""), MORE_HINT, self._update
            )

    async def _build_kept(self) -> None:
        """The settings of the original that have no field, so that none is lost without a word."""
        if not self._kept:
            return
        rest = without(self._kept, "quantization")  # which has a field
        kept, only_quantization = self._kept, {name: self._kept[name] for name in self._kept if name not in rest}

        def keep() -> Any:
            self._kept = kept if is_kept.value else only_quantization
            return self._update()

        is_kept = checkbox("Keep the other settings of the original; else the defaults apply", "true", keep)
        texts = {name: wording.setting_text(value) for name, value in rest.items()}
        if evaluation := rest.get("evaluation"):
            texts["evaluation"] = await wording.evaluation_text(self.api, evaluation)
        facts(texts)

    def _add(self, *names: str, **hints: str) -> None:
        """Add the fields of settings, with the title and the help of their definitions."""
        for name in names:
            setting = SETTINGS[name]
            make = text_area if setting.kind in (list, dict) else text_field
            if name in self._choices:
                make = partial(select_field, options=self._choices[name])
            self._fields[name] = make(
                setting.title,
                value=self._initial.get(name, ""),
                hint=(HINTS | hints).get(name, setting.help),
                on_change=self._update,
            )

    def _body(self, is_marked: bool = True) -> Json | None:
        """The request; None, with an error at its field if `is_marked`, if a value is not usable."""
        for field in self._fields.values():
            field.set_error("")
        try:
            return job_form.request_body({name: field.value for name, field in self._fields.items()}, self._kept)
        except FieldError as error:
            if is_marked:
                name, message = error.args
                self._fields[name].set_error(message)
            return None

    async def _update(self, is_marked: bool = True) -> None:
        body = self._body(is_marked)
        self._show_request(body)
        self._details.set_visibility(False)
        with refilled(self._verdict):
            if body is None:
                tag("p", "The plan appears when the fields are complete.", "t-muted")
                return
            waiting = busy("Counting tokens and memory ...")
        plan, queue = await asyncio.gather(
            self.api.post("fine_tuning/jobs/plan", body, timeout_seconds=PLAN_SECONDS),
            self.api.get("queue", limit=1),
            return_exceptions=True,
        )
        if waiting.is_deleted:  # a later change has its own plan
            return
        with refilled(self._verdict):
            if isinstance(plan, ApiError):
                is_refusal = not plan.is_unreachable and plan.code != "file_too_large_to_plan"
                error_note(plan, REFUSED if is_refusal else NO_PLAN)
                if plan.is_unreachable:
                    button("Plan again", self._update)
            elif isinstance(plan, dict):
                tone = VERDICT_TONES.get(plan["verdict"], "")
                note(plan["message"], _expected_start(queue), tone).classes("t-verdict")
                for warning in plan["warnings"]:
                    note("Warning", warning["message"], "warn")
                self._details.set_visibility(True)
                with refilled(self._plan):
                    _show_plan(plan)

    def _build_request(self) -> None:
        self._request_hint = tag("p", "The commands appear when the fields are complete.", "t-muted")
        self._commands = tag("div")
        with self._commands:
            tabs("The same request", {name: name for name in COMMANDS}, self._show_command)

    def _show_command(self, name: str) -> None:
        self._command = COMMANDS[name]
        self._code = code_block(self._command(self._request, self.settings.public_api_url))

    def _show_request(self, body: Json | None) -> None:
        """Change the text in its place: the tabs stay, as one may be pressed at this moment."""
        self._request_hint.set_visibility(body is None)
        self._commands.set_visibility(body is not None)
        if body is not None:
            self._request = body
            self._code.set_text(self._command(body, self.settings.public_api_url))

    async def _create(self) -> None:
        body = self._body()
        with refilled(self._result):
            if body is None:
                note("A field has a value that cannot be used", "It is marked above.", "bad", role="alert")
                return
            busy("Creating the job ...")
        # Of this form with these values: pressed again after a lost response, it creates no second job.
        key = hashlib.sha256(f"{self._form_id} {json.dumps(body)}".encode()).hexdigest()
        try:
            job = await self.api.post("fine_tuning/jobs", body, idempotency_key=key)
        except ApiError as error:
            with refilled(self._result):
                error_note(error, "The job was not created")
            return
        ui.navigate.to(f"/jobs/{job['id']}")


async def with_evaluation(api: ApiClient, job: Json) -> Json:
    """The job with the evaluation of its request; the request of a clone has only what differs from its original."""
    origin = job
    while origin["cloned_from"] and "evaluation" not in (origin["request"] or {}):
        origin = await api.get(f"fine_tuning/jobs/{origin['cloned_from']}")
    evaluation = {name: value for name, value in (origin["request"] or {}).items() if name == "evaluation"}
    return job | {"request": (job["request"] or {}) | evaluation}


def _show_plan(plan: Json) -> None:
    facts(
        {
            "Steps": count(plan["total_steps"]),
            "Processed tokens": count(plan["trained_tokens"]),
            "Examples": f"{count(plan['trained_examples'])} of {count(plan['examples'])}",
            "Longest example": f"{count(plan['longest_document_tokens'])} tokens",
            "Truncated": counted(plan["cut"]["count"], "example"),
        }
    )
    values = plan["hyperparameters"]
    facts(
        {
            "Epochs": count(values["n_epochs"]),
            "Batch size": counted(values["batch_size"], "example"),
            "Learning rate": f"{values['learning_rate']:g}" if values["learning_rate"] else "–",
            "Context length": f"{count(values['context_length'])} tokens",
        }
    )
    for device in plan["devices"]:
        show_device(device)


def show_device(device: Json) -> None:
    peak, total = device["memory"]["peak"], device["memory_bytes"]
    percent = min(100.0, 100 * peak / total) if total else 100.0
    with box("t-device"):
        with box("t-row"):
            tag("span", device["name"], "t-strong")
            pill("fits" if device["fits"] else "does not fit", "ok" if device["fits"] else "bad")
            tag("span", counted(device["workers"], "worker"), "t-muted")
        with box("t-bar", role="img", aria_label=f"Memory: {size(peak)} of {size(total)}"):
            tag("div", style=f"width: {percent:.0f}%")
        tag("div", device["details"], "t-hint")


def _expected_start(queue: Any) -> str:
    """When a job that is created now starts; without an answer of the queue nothing."""
    if not isinstance(queue, dict):
        return ""
    workers, waiting = queue["workers"], queue["own"]["waiting"] + queue["others"]["waiting"]
    if not workers["alive"]:
        return "It starts when a worker does."
    if workers["busy"] < workers["alive"] and not waiting:
        return "It starts at once."
    after = f"after {counted(waiting, 'queued job')}" if waiting else "when a worker is free"
    ends = [one["expected_finish"] for one in queue["running"]]
    return f"It starts {after}" + (f"; the first worker is free {until(min(ends))}." if ends else ".")
