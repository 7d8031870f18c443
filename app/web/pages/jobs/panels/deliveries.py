"""Deliveries of a job's adapters with the check of what each target serves, and the engines that serve them."""

from __future__ import annotations

from typing import Any

from app.web.components.data_table import DataTable, Row, column
from app.web.components.elements import note, tag
from app.web.components.forms import select_field
from app.web.formatting import clean, count, moment
from app.web.pages.jobs.dialogs import ask, form_dialog
from app.web.pages.jobs.panels.checkpoint_options import CheckpointButton
from app.web.pages.jobs.panels.opened_job import OpenedJob, refresh_while
from app.web.pages.jobs.wording import ENGINES, TARGET_KINDS

MAX_DELIVERIES, MAX_TARGETS = 100, 100
TONES = {"pending": "run", "delivered": "ok", "failed": "bad", "withdrawing": "wait", "withdrawn": "wait"}
UNFINISHED = ("pending", "withdrawing")
WITHDRAWALS = ("withdrawing", "withdrawn")
VERDICTS = {
    "same": ("serves what was trained", "ok"),
    "differs": ("differs from what was trained", "bad"),
    "no_effect": ("serves the base model", "bad"),
    "unclear": ("unclear", "warn"),
    "too_small_to_tell": ("effect too small to tell", "warn"),
    "unchecked": ("nothing to compare with", "warn"),
}
DELIVERY_COLUMNS = (
    column("target", "Target", lead=True),
    column("status", "Status"),
    column("check", "Check of what it serves"),
    column("attempts", "Attempts", "number"),
    column("delivered", "Delivered"),
)
ENGINE_COLUMNS = (
    column("engine", "Engine", lead=True),
    column("serves", "As it is"),
    column("why", "Reasons and notes", "wide"),
)

Json = dict[str, Any]


class DeliveriesPanel:
    def __init__(self, opened: OpenedJob) -> None:
        self._view, self._job = opened.view, opened.job
        self._path = f"fine_tuning/jobs/{opened.job['id']}/deliveries"
        self._shown: list[Json] = []
        self._dialogs = tag("div")
        self._new = CheckpointButton(opened, "Deliver", self._open_form)
        self._empty = tag("div")
        self._table = DataTable("Deliveries", DELIVERY_COLUMNS)
        self._table.on_press(self._ask_to_withdraw)
        tag("h2", "Which engines serve the adapter")
        self._engines = DataTable("Compatibility with engines", ENGINE_COLUMNS)
        refresh_while(lambda: any(one["status"] in UNFINISHED for one in self._shown), self._load)

    async def refresh(self, job: Json) -> None:
        self._job = job
        await self._new.refresh(job)
        self._engines.set_rows([_engine_row(name, job["compatibility"][name]) for name in ENGINES])
        await self._load()

    async def _load(self) -> None:
        self._shown = (await self._view.api.get(self._path, limit=MAX_DELIVERIES))["data"]
        self._table.set_visibility(bool(self._shown))
        self._table.set_rows([delivery_row(delivery, self._new.may_write) for delivery in self._shown])
        self._empty.clear()
        if not self._shown:
            with self._empty:
                note("No deliveries", _no_deliveries_text(self._job))

    async def _open_form(self) -> None:
        self._dialogs.clear()
        found = await self._view.api.items("delivery_targets", MAX_TARGETS)
        if not found:
            with self._dialogs:
                note("No delivery targets", "Create one first, see: tunery targets create --help", "warn", role="alert")
            return
        targets = {
            one["name"]: f"{clean(one['name'], 64)} ({TARGET_KINDS.get(one['kind'], one['kind'])})" for one in found
        }

        async def send() -> None:
            await self._view.api.post(self._path, {"target": target.value, "checkpoint": checkpoint.value})
            await self._load()

        with self._dialogs, form_dialog("Deliver the adapter", "Deliver", send):
            checkpoint = self._new.select()
            target = select_field("Target", targets, hint="What was delivered there before is delivered again.")

    def _ask_to_withdraw(self, delivery_id: str, _: str) -> None:
        (target,) = (clean(one["target"], 64) for one in self._shown if one["id"] == delivery_id)

        async def withdraw() -> None:
            await self._view.api.delete(f"{self._path}/{delivery_id}")
            await self._load()

        with self._dialogs:
            ask(f"Withdraw the adapter from {target}? Requests for it are refused there.", "Withdraw", withdraw)


def _no_deliveries_text(job: Json) -> str:
    targets = ", ".join(clean(name, 64) for name in job["deliver_to"])
    if targets and not job["adapter"]:
        return f"The adapter will be delivered to {targets}."
    return "A delivery brings the adapter to an inference server, a directory, a bucket or a hub."


def delivery_row(delivery: Json, may_write: bool = True) -> Row:
    can_be_withdrawn = may_write and delivery["status"] not in WITHDRAWALS
    buttons = [{"name": "withdraw", "label": "Withdraw"}] if can_be_withdrawn else []
    error = clean(delivery["error"], 400) if delivery["error"] else None
    served = clean(delivery["served_model"], 160)
    return {
        "id": delivery["id"],
        "label": clean(delivery["target"], 64),
        "target": {"text": clean(delivery["target"], 64), "sub": f"as {served}", "buttons": buttons},
        "status": {"text": delivery["status"].capitalize(), "tone": TONES[delivery["status"]], "sub": error},
        "check": _check(delivery["check"]),
        "attempts": count(delivery["attempts"]),
        "delivered": moment(delivery["delivered_at"]),
    }


def _check(check: Json | None) -> Row:
    if check is None:
        return {"text": "not checked"}
    text, tone = VERDICTS.get(check["verdict"], (check["verdict"], "warn"))
    numbers = (
        f"difference {check['difference']:.4f}, rounding {check['noise']:.4f}, effect {check['engine_effect']:.3f} of "
        f"{check['trainer_effect']:.3f} nats; {count(check['tokens'])} tokens"
    )
    return {"text": text, "tone": tone, "sub": clean(check["reason"], 400) if check["reason"] else numbers}


def _engine_row(name: str, verdict: Json) -> Row:
    flags = [" ".join(map(str, verdict["flags"]))] if verdict["flags"] else []
    return {
        "id": name,
        "engine": {"text": ENGINES[name], "sub": clean(verdict["version"], 40)},
        "serves": {"text": "yes", "tone": "ok"} if verdict["ok"] else {"text": "merged only", "tone": "warn"},
        "why": clean(" · ".join([*verdict["reasons"], *flags, *verdict["notes"]]).replace("`", ""), 1_000) or "–",
    }
