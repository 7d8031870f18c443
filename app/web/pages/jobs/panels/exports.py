"""Exports of a job's adapter: merged models and GGUF files, requested, followed and downloaded here."""

from __future__ import annotations

from functools import partial
from typing import Any

from app.web.components.data_table import DataTable
from app.web.components.elements import busy, button, card, facts, note, pill, tag
from app.web.components.forms import select_field
from app.web.formatting import clean, count, moment, size
from app.web.pages.jobs.dialogs import ask, form_dialog
from app.web.pages.jobs.file_table import FILE_COLUMNS, file_rows
from app.web.pages.jobs.panels.checkpoint_options import CheckpointButton
from app.web.pages.jobs.panels.opened_job import OpenedJob, refresh_while

MAX_EXPORTS = 100
TYPES = {
    "merged": "Merged model (safetensors): vLLM, SGLang, Transformers",
    "gguf": "Merged model as one GGUF file: llama.cpp, Ollama",
    "gguf_adapter": "Adapter alone as GGUF: llama.cpp beside its base model",
}
NAMES = {"merged": "Merged model", "gguf": "GGUF", "gguf_adapter": "GGUF adapter"}
QUANTIZATIONS = {"Q8_0": "Q8_0: 8 bits", "Q4_K_M": "Q4_K_M: about 5 bits, the smallest", "F16": "F16: 16 bits"}
TONES = {"queued": "wait", "running": "run", "succeeded": "ok", "failed": "bad"}
UNFINISHED = ("queued", "running")
PHASES = {
    "waiting_for_storage": "It waits for free disk space and continues by itself.",
    "waiting_for_worker": (
        "No running worker makes GGUF files. An operator runs pip install '.[gguf]' in a checkout of Tunery"
    ),
}

Json = dict[str, Any]


class ExportsPanel:
    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        self._path = f"fine_tuning/jobs/{opened.job['id']}/exports"
        self._shown: list[Json] | None = None
        self._dialogs = tag("div")
        self._new = CheckpointButton(opened, "New export", self._open_form)
        self._body = tag("div", classes="t-stack")
        refresh_while(self._is_unfinished, self._load)

    async def refresh(self, job: Json) -> None:
        await self._new.refresh(job)
        await self._load()

    def _is_unfinished(self) -> bool:
        return any(export["status"] in UNFINISHED for export in self._shown or ())

    async def _load(self) -> None:
        exports = (await self._view.api.get(self._path, limit=MAX_EXPORTS))["data"]
        if exports == self._shown:
            return
        self._shown = exports
        self._body.clear()
        with self._body:
            for export in exports:
                self._show(export)
            if not exports:
                note("No exports", "An export is the base model with the adapter merged into it, or a GGUF file.")

    def _show(self, export: Json) -> None:
        name = name_of(export)
        with card():
            with tag("div", classes="t-row"):
                tag("h2", f"{name} of step {count(export['step_number'])}")
                pill(export["status"].capitalize(), TONES[export["status"]])
                tag("span", moment(export["created_at"]), "t-muted")
                tag("span", classes="t-grow")
                if self._new.may_write:
                    button("Delete", partial(self._ask_to_delete, export), "t-danger")
            if export["status"] in UNFINISHED:
                busy(PHASES.get(export["phase"] or "", f"About {size(export['expected_bytes'])} are written."))
            if export["error"]:
                note("Why it failed", clean(export["error"]["message"], 2_000), "bad")
            if export["files"]:
                facts({"Size": size(export["bytes"]), "Finished": moment(export["finished_at"])})
                DataTable(f"Files: {name}", FILE_COLUMNS, file_rows(export["files"]))

    def _open_form(self) -> None:
        def choose() -> None:
            of_gguf.set_visibility(kind.value == "gguf")

        async def send() -> None:
            quantization = {"quantization": weights.value} if kind.value == "gguf" else {}
            body = {"type": kind.value, "checkpoint": checkpoint.value} | quantization
            await self._view.api.post(self._path, body)
            await self._load()

        with self._dialogs, form_dialog("New export", "Export", send):
            checkpoint = self._new.select()
            kind = select_field("Type", TYPES, on_change=choose)
            with tag("div") as of_gguf:
                weights = select_field("Quantization", QUANTIZATIONS, hint="Of the weights in the file.")
            of_gguf.set_visibility(False)

    def _ask_to_delete(self, export: Json) -> None:
        async def delete() -> None:
            try:
                await self._view.api.delete(f"{self._path}/{export['id']}")
            finally:
                await self._load()  # also without an export that another tab has deleted

        with self._dialogs:
            ask(f"Delete this export ({name_of(export)}) and its files?", "Delete export", delete)


def name_of(export: Json) -> str:
    return ", ".join(filter(None, (NAMES[export["type"]], export["quantization"])))
