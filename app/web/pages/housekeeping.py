"""Renaming and deleting files and jobs, with what depends on them before the confirmation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from nicegui import ui
from nicegui.element import Element

from app.domain.error_text.json_text import counted
from app.web.api_client import Json
from app.web.components.elements import box, button, facts, link, tag
from app.web.components.forms import checkbox, form_dialog, text_field
from app.web.frame import View
from app.web.pages.jobs import wording

MAX_JOBS = 20  # of each file
MAX_COPIES = 20
MAX_FILES = 200
MAX_OBJECTS = 100
KEEP = "Keep it"


def add_file_buttons(view: View, file: Json, dialogs: Element) -> None:
    path = f"files/{file['id']}"
    rename = partial(_ask_name, view, path, "filename", file["filename"], True)
    _add_buttons(dialogs, {"Rename": rename, "Delete": partial(_ask_to_delete_file, view, file)})


def add_job_buttons(view: View, job: Json, dialogs: Element) -> None:
    """Only a job that has ended can be deleted."""
    path = f"fine_tuning/jobs/{job['id']}"
    asks = {"Rename": partial(_ask_name, view, path, "suffix", job["user_provided_suffix"] or "", False)}
    if job["status"] not in wording.UNFINISHED:
        asks["Delete job"] = partial(_ask_to_delete_job, view, job)
    _add_buttons(dialogs, asks)


def _add_buttons(dialogs: Element, asks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """`dialogs` stays when the buttons are replaced."""

    async def press(ask: Callable[[], Awaitable[None]]) -> None:
        with dialogs:
            await ask()

    for label, ask in asks.items():
        button(label, partial(press, ask))


async def _ask_name(view: View, path: str, field: str, name: str, is_required: bool) -> None:
    async def send() -> None:
        await view.api.post(path, {field: entered.value.strip() or ("" if is_required else None)})
        ui.navigate.reload()

    with form_dialog("Rename", "Rename", send):
        entered = text_field("Name", name, maxlength="64" if field == "suffix" else None)
        if field == "suffix":
            tag("p", "The names of models that exist stay as they are.", "t-hint")


async def _ask_to_delete_file(view: View, file: Json) -> None:
    files = await view.api.items("files", MAX_FILES, purpose=file["purpose"])
    copies = [one["id"] for one in files if one["sha256"] == file["sha256"] and one["id"] != file["id"]][:MAX_COPIES]
    requests = (view.api.items("fine_tuning/jobs", MAX_JOBS, file=one) for one in (file["id"], *copies))
    jobs = {job["id"]: job for found in await asyncio.gather(*requests) for job in found}

    async def send() -> None:
        for file_id in (*(copies if with_copies and with_copies.value else ()), file["id"]):
            await view.api.delete(f"files/{file_id}")
        ui.navigate.to("/datasets")

    with form_dialog(f"Delete {file['filename']}?", "Delete", send, "t-danger", KEEP):
        tag("p", "Its content cannot be restored.")
        _show_users(list(jobs.values()))
        if file.get("held_out_file_id"):
            tag("p", "The rows kept for validation stay: they are a file of their own.")
        with_copies = None
        if copies:
            with_copies = checkbox(f"With {counted(len(copies), 'other file')} of the same content", "true", None)


def _show_users(jobs: list[Json]) -> None:
    if not jobs:
        tag("p", "No job uses it.")
        return
    some = " or more" if len(jobs) >= MAX_JOBS else ""
    tag("p", f"{counted(len(jobs), 'job')}{some} used it. Results stay; an unfinished job goes on to its end.")
    with box("t-row"):
        for job in jobs[:MAX_JOBS]:
            link(f"{wording.name(job)} ({wording.label(job).lower()})", f"/jobs/{job['id']}")


async def _ask_to_delete_job(view: View, job: Json) -> None:
    path = f"fine_tuning/jobs/{job['id']}"
    names = ("checkpoints", "exports", "evaluations")
    lists = await asyncio.gather(*(view.api.items(f"{path}/{name}", MAX_OBJECTS) for name in names))
    job = await view.api.get(path)  # its deliveries, as they are now
    targets = [one["target"] for one in job["deliveries"] if one["status"] != "withdrawn"]

    async def send() -> None:
        await view.api.delete(path)
        ui.navigate.to("/jobs")

    with form_dialog(f"Delete {wording.name(job)}?", "Delete job", send, "t-danger", KEEP):
        made = {name.capitalize(): str(len(found)) for name, found in zip(names, lists, strict=True) if found}
        if job["fine_tuned_model"]:
            made |= {"Model": job["fine_tuned_model"]}
        if targets:
            made |= {"Withdrawn from": ", ".join(targets)}
        if made:
            tag("p", "This is deleted with it, and cannot be restored:")
            facts(made)
        tag("p", "The files that it was trained on stay.")
