"""The kept checkpoints of a job, of which exports, evaluations and deliveries are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.web.api_client import ApiClient
from app.web.components.elements import button
from app.web.components.forms import Field, select_field
from app.web.formatting import count, loss
from app.web.pages.jobs.panels.opened_job import OpenedJob

MAX_CHECKPOINTS = 100

Json = dict[str, Any]


class CheckpointButton:
    """The button of a form with a checkpoint: it is there while the key may write and a checkpoint is kept."""

    def __init__(self, opened: OpenedJob, label: str, open_form: Callable[[], Any]) -> None:
        self._api = opened.view.api
        self.may_write = opened.view.may("jobs:write")
        self._options: dict[str, str] = {}
        self._button = button(label, open_form, "t-primary")
        self._button.set_visibility(False)

    async def refresh(self, job: Json) -> None:
        self._options = await checkpoint_options(self._api, job)
        self._button.set_visibility(self.may_write and bool(self._options))

    def select(self) -> Field:
        """The field of the form."""
        return select_field("Checkpoint", self._options)


async def checkpoint_options(api: ApiClient, job: Json) -> dict[str, str]:
    """Texts by id, the result of the job first: it is what a call without a checkpoint takes."""
    found = (await api.get(f"fine_tuning/jobs/{job['id']}/checkpoints", limit=MAX_CHECKPOINTS))["data"]
    found.sort(key=lambda one: not _is_result(one, job))
    return {one["id"]: option_text(one, job) for one in found}


def option_text(checkpoint: Json, job: Json) -> str:
    parts = [f"Step {count(checkpoint['step_number'])}"]
    if (valid := checkpoint["metrics"].get("full_valid_loss")) is not None:
        parts.append(f"validation loss {loss(valid)}")
    parts += ["the best"] if checkpoint["best"] else []
    parts += ["the result"] if _is_result(checkpoint, job) else []
    return ", ".join(parts)


def _is_result(checkpoint: Json, job: Json) -> bool:
    return bool(checkpoint["fine_tuned_model_checkpoint"] == job["fine_tuned_model"])
