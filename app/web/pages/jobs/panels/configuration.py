"""The settings of a job: as the request gave them, beside their resolved values."""

from __future__ import annotations

import json

from app.domain.jobs.request_parameters import METHOD_OF, collect
from app.web.api_client import Json
from app.web.components.data_table import lead_column, text_column, titled_table
from app.web.components.elements import card, code_block, facts, note
from app.web.formatting import clean_lines
from app.web.pages.jobs.panels.panel import Panel
from app.web.pages.jobs.wording import UNITS, setting_text

MAX_REQUEST_CHARACTERS = 20_000


class ConfigurationPanel(Panel):
    """The settings of a job, which never change."""

    def build(self) -> None:
        job = self.job
        requested = asked_values(job)
        for title, values in _groups(job).items():
            rows = [
                {"name": name, "unit": UNITS.get(name), "value": values[name]}
                | ({"requested": requested[name]} if name in requested else {})
                for name in values
            ]
            titled_table(title, COLUMNS, rows, key="name").classes("t-even")  # the same columns in each group
        if job["metadata"]:
            with card("Metadata"):
                facts(job["metadata"])
        if job["request"] is None:
            note("The request is not stored", "This job was created by a release that kept only the resolved values.")
            return
        with card("Request as it was sent (of a clone: its changes)"):
            text = json.dumps(job["request"], indent=2, ensure_ascii=False)
            code_block(clean_lines(text, MAX_REQUEST_CHARACTERS))


def asked_values(job: Json) -> Json:
    """The values of the request by the names of the resolved settings; those under an alias among them."""
    request = job["request"] or {}
    named = {name: request[name] for name in ("seed", "priority", "urgent", "worker_labels") if name in request}
    if "method" in request:
        named["method"] = (request["method"] or {}).get("type")
    if request.get("quantization", "") is None:
        named["quantization"] = "none"
    return {name: given.value for name, given in collect(request).given.items()} | named


def _groups(job: Json) -> dict[str, Json]:
    """The resolved settings by title; their names are those of `asked_values`."""
    method = job["method"]["type"]
    hyperparameters = job["method"][method]["hyperparameters"]  # those of the other method are null
    quantization = {f"quantization.{name}": value for name, value in (job["quantization"] or {}).items()}
    return {
        "Training": {"method": method, "seed": job["seed"]}
        | {name: value for name, value in hyperparameters.items() if METHOD_OF.get(name, method) == method},
        "LoRA": {f"lora.{name}": value for name, value in job["lora"].items()},
        "Quantization": quantization or {"quantization": "none: the base model is trained in 16 bits"},
        "Queue": {name: job[name] for name in ("priority", "urgent", "worker_labels")},
    }


COLUMNS = (
    lead_column("Setting", "name", sub="unit"),
    text_column("As requested", "", lambda row: setting_text(row["requested"]) if "requested" in row else "–"),
    text_column("As resolved", "value", setting_text),
)
