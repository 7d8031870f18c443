"""Exports of a job's adapter: merged models and GGUF files, requested, followed and downloaded here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.domain.artifacts.exports import ExportType
from app.web.api_client import Json
from app.web.components.data_table import DataTable
from app.web.components.elements import box, busy, button, facts, tag
from app.web.components.forms import select_field
from app.web.formatting import moment, size
from app.web.pages.jobs.panels.panel import FILE_COLUMNS, FormTexts, ResultsPanel

TYPES = {
    "merged": "Merged model (safetensors): vLLM, SGLang, Transformers",
    "gguf": "Merged model as one GGUF file: llama.cpp, Ollama",
    "gguf_adapter": "Adapter alone as GGUF: llama.cpp beside its base model",
}
NAMES = {"merged": "Merged model", "gguf": "GGUF", "gguf_adapter": "GGUF adapter"}
QUANTIZATIONS = {"Q8_0": "Q8_0: 8 bits", "Q4_K_M": "Q4_K_M: about 5 bits, the smallest", "F16": "F16: 16 bits"}
PHASES = {
    "waiting_for_storage": "It waits for free disk space and continues by itself.",
    "waiting_for_worker": (
        "No running worker makes GGUF files. An operator runs pip install '.[gguf]' in a checkout of Tunery"
    ),
}


class ExportsPanel(ResultsPanel):
    name = "exports"
    form = FormTexts("New export", "New export", "Export")

    def nothing(self) -> tuple[str, str]:
        return "No exports", "An export is the base model with the adapter merged into it, or a GGUF file."

    def title(self, one: Json) -> str:
        return ", ".join(filter(None, (NAMES[one["type"]], one["quantization"])))

    def add_actions(self, one: Json) -> None:
        tag("span", classes="t-grow")
        if self.may_write:
            question = f"Delete this export ({self.title(one)}) and its files?"
            button("Delete", partial(self.ask, question, "Delete export", self.api.delete, one["id"]), "t-danger")

    def content(self, one: Json) -> None:
        if one["status"] in self.unfinished:
            busy(PHASES.get(one["phase"], f"About {size(one['expected_bytes'])} are written."))
        if one["files"]:
            facts({"Size": size(one["bytes"]), "Finished": moment(one["finished_at"])})
            DataTable(f"Files: {self.title(one)}", FILE_COLUMNS, one["files"])

    def add_fields(self, _: dict[str, str]) -> Callable[[], Json]:
        def choose() -> None:
            of_gguf.set_visibility(kind.value == ExportType.GGUF)

        kind = select_field("Type", TYPES, on_change=choose)
        with box("") as of_gguf:
            weights = select_field("Quantization", QUANTIZATIONS, hint="Of the weights in the file.")
        choose()
        return lambda: {"type": kind.value} | ({"quantization": weights.value} if kind.value == ExportType.GGUF else {})
