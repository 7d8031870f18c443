"""Deliveries of a job's adapters with the check of what each target serves, and the engines that serve them."""

from __future__ import annotations

from typing import Any

from app.web.components.data_table import DataTable, Row, column
from app.web.components.elements import note, tag
from app.web.formatting import clean, count, moment
from app.web.pages.jobs.panels.opened_job import OpenedJob
from app.web.pages.jobs.wording import ENGINES

MAX_DELIVERIES = 100
TONES = {"pending": "run", "delivered": "ok", "failed": "bad", "withdrawing": "wait", "withdrawn": "wait"}
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
    column("why", "Reasons and notes"),
)

Json = dict[str, Any]


class DeliveriesPanel:
    def __init__(self, opened: OpenedJob) -> None:
        self._view = opened.view
        self._empty = tag("div")
        self._table = DataTable("Deliveries", DELIVERY_COLUMNS)
        tag("h2", "Which engines serve the adapter")
        self._engines = DataTable("Compatibility with engines", ENGINE_COLUMNS)

    async def refresh(self, job: Json) -> None:
        page = await self._view.api.get(f"fine_tuning/jobs/{job['id']}/deliveries", limit=MAX_DELIVERIES)
        self._table.set_visibility(bool(page["data"]))
        self._table.set_rows([delivery_row(delivery) for delivery in page["data"]])
        self._engines.set_rows([_engine_row(name, job["compatibility"][name]) for name in ENGINES])
        self._empty.clear()
        if not page["data"]:
            targets = ", ".join(clean(name, 64) for name in job["deliver_to"])
            text = f"The adapter will be delivered to {targets}." if targets else "No target of this job is set."
            with self._empty:
                note("No deliveries", f"{text} A finished adapter: tunery jobs deliver {job['id']} --to TARGET")


def delivery_row(delivery: Json) -> Row:
    error = clean(delivery["error"], 400) if delivery["error"] else None
    served = clean(delivery["served_model"], 160)
    return {
        "id": delivery["id"],
        "label": clean(delivery["target"], 64),
        "target": {"text": clean(delivery["target"], 64), "sub": f"as {served}"},
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
        "why": clean(" · ".join([*verdict["reasons"], *flags, *verdict["notes"]]), 1_000) or "–",
    }
