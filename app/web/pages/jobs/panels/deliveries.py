"""Deliveries of a job's adapters with the check of what each target serves, and the engines that serve them."""

from __future__ import annotations

from collections.abc import Callable

from app.web.api_client import ApiClient, Json
from app.web.components.data_table import (
    Cell,
    lead_column,
    number_column,
    text_column,
    titled_table,
    wide_column,
)
from app.web.components.elements import note
from app.web.components.forms import select_field
from app.web.formatting import count, moment
from app.web.pages.jobs.panels.panel import FormTexts, ResultsPanel
from app.web.pages.jobs.wording import ENGINES, TARGET_KINDS

MAX_TARGETS = 100
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


class DeliveriesPanel(ResultsPanel):
    name, caption = "deliveries", "Deliveries"
    unfinished = UNFINISHED
    form = FormTexts("Deliver", "Deliver the adapter", "Deliver")

    def build(self) -> None:
        self.columns = (
            lead_column("Target", "", self._target),
            text_column("Status", "", _status),
            text_column("Check of what it serves", "check", _check),
            number_column("Attempts", "attempts", count),
            text_column("Delivered", "delivered_at", moment),
        )
        super().build()
        self.table.on_event("press", self._ask_to_withdraw)
        self._engines = titled_table("Which engines serve the adapter", ENGINE_COLUMNS, key="name")

    async def refresh(self, job: Json) -> None:
        self._engines.show({"name": name} | job["compatibility"][name] for name in ENGINES)
        await super().refresh(job)

    def nothing(self) -> tuple[str, str]:
        targets = ", ".join(self.job["deliver_to"])
        text = "A delivery brings the adapter to an inference server, a directory, a bucket or a hub."
        is_expected = targets and not self.job["adapter"]
        return "No deliveries", f"The adapter will be delivered to {targets}." if is_expected else text

    async def choices(self) -> dict[str, str] | None:
        return await target_options(self.api)

    def add_fields(self, choices: dict[str, str]) -> Callable[[], Json]:
        target = select_field("Target", choices, hint="What was delivered there before is delivered again.")
        return lambda: {"target": target.value}

    def _target(self, delivery: Json) -> Cell:
        is_offered = self.may_write and delivery["status"] not in WITHDRAWALS
        buttons = [{"name": "withdraw", "label": "Withdraw"}] if is_offered else []
        return {"text": delivery["target"], "sub": f"as {delivery['served_model']}", "buttons": buttons}

    def _ask_to_withdraw(self, delivery_id: str, _: str) -> None:
        (target,) = (one["target"] for one in self.shown if one["id"] == delivery_id)
        question = f"Withdraw the adapter from {target}? Requests for it are refused there."
        self.ask(question, "Withdraw", self.api.delete, delivery_id)


async def target_options(api: ApiClient) -> dict[str, str] | None:
    """Texts of the delivery targets by name, those that serve one name first; None after a note that there is none."""
    found = await api.items("delivery_targets", MAX_TARGETS)
    if not found:
        note("No delivery targets", "What creates one: `tunery targets create --help`", "warn", role="alert")
        return None
    served = {one["name"]: f", as {one['served_model']}" if one["served_model"] else "" for one in found}
    return {
        one["name"]: f"{one['name']} ({TARGET_KINDS[one['kind']]}{served[one['name']]})"
        for one in sorted(found, key=lambda one: not one["served_model"])
    }


def _status(delivery: Json) -> Cell:
    status = delivery["status"]
    return {"text": status.capitalize(), "tone": TONES[status], "sub": delivery["error"]}


def _check(check: Json | None) -> Cell:
    if check is None:
        return {"text": "not checked"}
    text, tone = VERDICTS[check["verdict"]]
    numbers = (
        f"difference {check['difference']:.4f}, rounding {check['noise']:.4f}, effect {check['engine_effect']:.3f} of "
        f"{check['trainer_effect']:.3f} nats; {count(check['tokens'])} tokens"
    )
    return {"text": text, "tone": tone, "sub": check["reason"] or numbers}


def _serves(is_served: bool) -> Cell:
    return {"text": "yes", "tone": "ok"} if is_served else {"text": "merged only", "tone": "warn"}


def _why(verdict: Json) -> str:
    parts = filter(None, (*verdict["reasons"], " ".join(verdict["flags"]), *verdict["notes"]))
    return " · ".join(parts).replace("`", "") or "–"


ENGINE_COLUMNS = (
    lead_column("Engine", "name", ENGINES.__getitem__, sub="version"),
    text_column("As it is", "ok", _serves),
    wide_column("Reasons and notes", "", _why),
)
