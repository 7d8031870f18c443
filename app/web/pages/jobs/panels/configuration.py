"""The settings of a job: as the request gave them, beside their resolved values."""

from __future__ import annotations

import json

from app.domain.jobs.create_job import CreateJob, settings_of
from app.domain.jobs.request_parameters import collect
from app.domain.methods import OWNERS
from app.web.api_client import Json
from app.web.components.data_table import lead_column, text_column, titled_table
from app.web.components.elements import box, card, code_block, facts, note, refilled, tag
from app.web.formatting import clean_lines
from app.web.pages.jobs.new_job import with_evaluation
from app.web.pages.jobs.panels.panel import Panel
from app.web.pages.jobs.wording import UNITS, evaluation_text, setting_text

MAX_REQUEST_CHARACTERS = 20_000
GROUPS = {
    "method": "Training",
    "seed": "Training",
    "chat_template_kwargs": "Training",
    "lora": "LoRA",
    "quantization": "Quantization",
    "priority": "Queue",
    "urgent": "Queue",
    "worker_labels": "Queue",
}
OUTSIDE_OBJECTS = ("seed", "chat_template_kwargs", "priority", "urgent", "worker_labels")


class ConfigurationPanel(Panel):
    """The settings of a job, which never change."""

    def build(self) -> None:
        job = self.job
        requested = asked_values(job)
        settings = settings_of(job)
        for title in dict.fromkeys(GROUPS.values()):
            rows = [
                {"name": name, "unit": UNITS.get(name), "value": value}
                | ({"requested": requested[name]} if name in requested else {})
                for name, value in settings.items()
                if title == _group(name, settings["method"])
            ]
            titled_table(title, COLUMNS, rows, key="name").classes("t-even")  # the same columns in each group
        self._evaluation = box("t-stack")
        if job["metadata"]:
            with card("Metadata"):
                facts(job["metadata"])
        if job["request"] is None:
            note("The request is not stored", "This job was created by a release that kept only the resolved values.")
            return
        with card("Request as it was sent (of a clone: its changes)"):
            text = json.dumps(job["request"], indent=2, ensure_ascii=False)
            code_block(clean_lines(text, MAX_REQUEST_CHARACTERS))

    async def load(self) -> None:
        evaluation = (await with_evaluation(self.api, self.job))["request"].get("evaluation")
        text = await evaluation_text(self.api, evaluation) if evaluation else None
        with refilled(self._evaluation):
            if text:
                with card("Evaluation after the training"):
                    tag("p", text)


def asked_values(job: Json) -> Json:
    """The values of the request by the names of the resolved settings; those under an alias among them."""
    request = job["request"] or {}
    named = {name: request[name] for name in OUTSIDE_OBJECTS if name in request}
    if "method" in request:
        named["method"] = (request["method"] or {}).get("type")
    if request.get("quantization", "") is None:
        named["quantization"] = "none"
    return {name: given.value for name, given in collect(request).given.items()} | named


def _group(name: str, method: str) -> str | None:
    """The title of the table that has the setting; None for one of another method, or that the page shows elsewhere."""
    is_hyperparameter = name not in CreateJob.model_fields and method in OWNERS.get(name, (method,))
    return GROUPS.get(name.partition(".")[0], "Training" if is_hyperparameter else None)


COLUMNS = (
    lead_column("Setting", "name", sub="unit"),
    text_column("Requested", "", lambda row: setting_text(row["requested"]) if "requested" in row else "–"),
    text_column("Used", "value", setting_text),
)
