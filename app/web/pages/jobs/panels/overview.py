"""The first panel of a job: the result of its evaluation, what to do with its adapter, else its curves."""

from __future__ import annotations

from typing import NamedTuple

from nicegui import ui

from app.web.api_client import Json
from app.web.components.elements import box, card, code_block, folded, link, note, refilled, tabs, tag
from app.web.frame import View
from app.web.pages.answers import TryIt
from app.web.pages.jobs import wording
from app.web.pages.jobs.metrics import MetricsPanel
from app.web.pages.jobs.panels.panel import Panel
from app.web.pages.jobs.panels.result import RowsTable, show_scores

CLIENT = 'from openai import OpenAI\n\nclient = OpenAI(base_url="{url}/v1", api_key="tnry_...")\n'


class Way(NamedTuple):
    """Something to do with an adapter: the place below the job's page, a sentence, the command, the same in Python."""

    label: str
    place: str
    text: str
    command: str
    python: str


WAYS = {
    "try": Way(
        "Try it",
        "#what-now",
        "",
        'tunery ask {model} "Where is my parcel?"',
        """\
answer = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "Where is my parcel?"}}],
    temperature=0,
)
print(answer.choices[0].message.content)""",
    ),
    "evaluate": Way(
        "Evaluate",
        "?tab=evaluations",
        "Base model and adapter answer rows that the training has not seen, and graders score the answers.",
        "tunery eval {job} --file heldout.jsonl",
        """\
file = client.files.create(file=open("heldout.jsonl", "rb"), purpose="evals")
graders = [{{"type": "label_accuracy", "name": "label"}}]
path = "/fine_tuning/jobs/{job}/evaluations"
print(client.post(path, body={{"file": file.id, "graders": graders}}, cast_to=object))""",
    ),
    "download": Way(
        "Download",
        "/adapter.tar",
        "The adapter as PEFT reads it, with its model card and the SHA-256 of each file.",
        "tunery adapters download {job} -o adapter",
        'client.files.content("{archive}").write_to_file("adapter.tar")',
    ),
    "deliver": Way(
        "Deliver",
        "?tab=deliveries",
        "To an inference server, a directory, a bucket or a hub, which an administrator has added as a target.",
        "tunery jobs deliver {job} --to TARGET",
        """\
path = "/fine_tuning/jobs/{job}/deliveries"
print(client.post(path, body={{"target": "TARGET"}}, cast_to=object))""",
    ),
}


class OverviewPanel(Panel):
    def build(self) -> None:
        self._body = box("t-stack")
        self._shown: object = None
        self._curves: MetricsPanel | None = None

    async def load(self) -> None:
        evaluation = self.job["evaluation"] or {}
        is_evaluated = bool(evaluation.get("headline"))
        shown = (evaluation.get("id"), evaluation.get("status"), bool(self.job["adapter"]))
        if shown != self._shown:
            path = f"{self.path}/evaluations/{evaluation.get('id')}"
            found = await self.api.get(path) if is_evaluated else None
            is_first = self._shown is None
            self._shown, self._curves = shown, None
            with refilled(self._body):
                await self._show(found, path)
            if is_first:  # of a new page: the part that its address names was not there yet
                ui.run_javascript("document.getElementById(location.hash.slice(1))?.scrollIntoView()")
        if self._curves is not None:
            await self._curves.refresh(self.job)

    async def _show(self, evaluation: Json | None, path: str) -> None:
        job = self.job
        if evaluation is None and job["evaluation"] is not None:
            note(*wording.EVALUATIONS[job["evaluation"]["status"]])
        with box("t-split" if evaluation and job["adapter"] else "t-stack"):
            if evaluation is not None:
                with box("t-stack"):
                    show_scores(evaluation)
            if job["adapter"]:
                _show_ways(self.view, job)
        if evaluation is None:
            self._curves = MetricsPanel(self.view, job)
        else:
            await RowsTable(self.api, path).load()


def add_actions(view: View, job: Json) -> None:
    """Add the buttons that lead to what can be done with the adapter."""
    for name in WAYS:
        if _is_allowed(view, name):
            _add_link(job, name, "t-button t-primary" if name == "try" else "t-button")


def _is_allowed(view: View, way: str) -> bool:
    return way == "download" or view.may("answers:write" if way == "try" else "jobs:write")


def _add_link(job: Json, way: str, classes: str) -> None:
    attributes = {"download": ""} if way == "download" else {}
    link(WAYS[way].label, f"/jobs/{job['id']}{WAYS[way].place}", classes, **attributes)


def _show_ways(view: View, job: Json) -> None:
    names = {
        "url": view.settings.public_api_url,
        "job": job["id"],
        "model": job["fine_tuned_model"],
        "archive": job["adapter"]["archive_file_id"],
    }

    def show(name: str) -> None:
        way = WAYS[name]
        if name == "try":
            TryIt(view, job["adapter"]["base_model"], job["fine_tuned_model"])
        else:
            tag("p", way.text)
            if _is_allowed(view, name):
                _add_link(job, name, "t-button t-primary")
        with folded("Command line and Python", is_open=name != "try"):  # the chat has its place first
            for text in (way.command, CLIENT + way.python):
                code_block(text.format_map(names))

    offered = {name: way.label for name, way in WAYS.items() if name != "try" or view.may("answers:write")}
    with card("What now") as element:
        element.props["id"] = "what-now"
        tabs("What now", offered, show)
