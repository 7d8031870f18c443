"""For administrators: the base models with the cards that train them, and a form that adds one."""

from __future__ import annotations

import asyncio
from functools import cache, partial
from typing import Any

from nicegui import ui

from app.domain.planning.base_sizes import COMMON_BASES, training_memory
from app.web.api_client import Json
from app.web.components.data_table import (
    CREATED,
    Cell,
    DataTable,
    ago,
    lead_column,
    number_column,
    show_section,
    state,
    text_column,
    wide_column,
)
from app.web.components.elements import box, busy, button, card, note, refilled, tag
from app.web.components.forms import select_field, text_field
from app.web.formatting import count, size
from app.web.frame import View, screen

REGISTRATIONS = "organization/base_model_registrations"
MAX_REGISTRATIONS = 10
POLL_SECONDS = 2.0
UNFINISHED = ("queued", "running")
SOURCES = {"hub": "From a hub", "directory": "From a directory on the server"}
HINT_HUB = "Such as Qwen/Qwen3-4B. A worker downloads it."
HINT_DIRECTORY = "With safetensors, config.json and tokenizer; the same path on every worker."
VARIANTS = ("-instruct", "-base", "-it", "-chat")
NO_MODEL = partial(note, "No base model yet", "Add one below.", "warn")
TONES = {"succeeded": "ok", "failed": "bad", "running": "run"}


def _memory(index: int) -> Any:
    """The cell of one usual training: the memory and the smallest card."""

    def show(memory: list[Json]) -> Cell:
        one = memory[index]
        gigabytes = one["card_gigabytes"]
        return {"text": f"{gigabytes} GB card" if gigabytes else "no single card", "sub": size(one["bytes"])}

    return show


MEMORY_COLUMNS = (
    number_column("QLoRA, 2,048 tokens", "memory", _memory(0)),
    number_column("QLoRA, 8,192 tokens", "memory", _memory(1)),
    number_column("16-bit LoRA, 2,048 tokens", "memory", _memory(2)),
)
PARAMETERS = number_column("Parameters", "parameters", lambda number: f"{number / 1e9:.2g} B")
MODEL_COLUMNS = (
    lead_column("Base model", "id", sub="directory"),
    PARAMETERS,
    *MEMORY_COLUMNS,
    number_column("Context length", "max_context_length", lambda tokens: f"{count(tokens)} tokens"),
    number_column("Registered", "created_at", ago),
)
USUAL_COLUMNS = (lead_column("Base model", "id"), PARAMETERS, *MEMORY_COLUMNS)
REGISTRATION_COLUMNS = (
    lead_column("Registration", "name", sub="directory"),
    text_column("Status", "status", state(TONES)),
    wide_column("Notes", "", lambda one: one["error"]["message"] if one["error"] else " ".join(one["notes"]) or "–"),
    CREATED,
)


@cache
def usual_models() -> list[Json]:
    """Common base models with the memory that trains them; the plans of all take seconds."""
    return [
        {"id": base.name, "parameters": base.entry.parameters, "memory": training_memory(base.entry)}
        for base in COMMON_BASES
    ]


def usual_model(name: str, usual: list[Json]) -> Json | None:
    """The common base model of which `name` is the id on a hub, a directory or a variant such as Instruct."""
    word = name.strip().rstrip("/").rpartition("/")[2].lower()
    for variant in VARIANTS:
        word = word.removesuffix(variant)
    return next((one for one in usual if one["id"].lower() == word), None)


@screen("/admin/models", "Base models")
class BaseModelsPage(View):
    async def build(self) -> None:
        tag("h1", "Base models")
        if not self.session.is_admin:
            note("Only for administrators", "Sign in with a key that has the scope admin.", "warn")
            return
        self._unfinished: set[str] = set()
        self._models = box("t-stack")
        with card("Add a base model"):
            self._build_form()
        self._registrations = DataTable("Registrations", REGISTRATION_COLUMNS)
        self._usual: list[Json] = []
        tag("h2", "Which cards train which model")
        tag("p", "At least, for an adapter of rank 16 on all linear layers; more memory is faster.", "t-muted")
        self._table = box("t-stack")
        await asyncio.gather(self._show_models(), self._show_registrations())
        ui.timer(POLL_SECONDS, self._poll)
        ui.timer(0.05, self._show_usual, once=True)

    def _build_form(self) -> None:
        with box("t-form"):
            self._from = select_field("Source", SOURCES, on_change=self._show_plan)
            self._place = text_field("Id on the hub, or directory", hint=HINT_HUB, on_change=self._show_plan)
            self._name = text_field("Name", hint="Default: the id on the hub, or the name of the directory.")
            self._revision = text_field("Commit or tag", hint="Of the model on its hub. Default: the newest.")
            self._license = text_field("License", hint="Such as apache-2.0.")
        self._plan = box("t-stack", aria_live="polite")
        self._result = tag("div")
        with box("t-actions"):
            button("Add", self._add, "t-primary")

    def _show_plan(self) -> None:
        self._place.hint.set_text(HINT_HUB if self._from.value == "hub" else HINT_DIRECTORY)
        found = usual_model(self._place.value, self._usual)
        with refilled(self._plan):
            if found is not None:
                DataTable("The plan", USUAL_COLUMNS, [found])
            elif self._place.value:
                tag("p", "The cards that train it are shown above as soon as a worker has read its shapes.", "t-hint")

    async def _add(self) -> None:
        place = self._place.value.strip()
        is_hub = self._from.value == "hub"
        name = self._name.value.strip() or (place if is_hub else place.rstrip("/").rpartition("/")[2])
        body = {"name": name, "source" if is_hub else "directory": place}
        given = {"revision": self._revision.value.strip(), "license": self._license.value.strip()}
        self._result.clear()
        with self._result:
            await self.api.post(REGISTRATIONS, body | {key: value for key, value in given.items() if value})
            note("A worker checks the model", "It needs some minutes; the table below shows how far it is.", "ok")
        await self._show_registrations()

    async def _show_models(self) -> None:
        async def models() -> list[Json]:
            return list((await self.api.get("organization/base_models"))["data"])

        with refilled(self._models):
            await show_section("Registered", models(), MODEL_COLUMNS, NO_MODEL)

    async def _show_registrations(self) -> None:
        found = await self.api.items(REGISTRATIONS, MAX_REGISTRATIONS)
        self._registrations.set_visibility(bool(found))
        self._registrations.show(found)
        unfinished = {one["id"] for one in found if one["status"] in UNFINISHED}
        if self._unfinished - unfinished:
            await self._show_models()
        self._unfinished = unfinished

    async def _poll(self) -> None:
        if self._unfinished:
            await self._show_registrations()

    async def _show_usual(self) -> None:
        with refilled(self._table):
            waiting = busy("Planning ...")
        self._usual = await asyncio.to_thread(usual_models)
        waiting.delete()
        with self._table:
            DataTable("Which cards train which model", USUAL_COLUMNS, self._usual)
        self._show_plan()
