"""The kept checkpoints of a job, of which exports, evaluations and deliveries are made."""

from __future__ import annotations

from typing import Any

from app.web.api_client import ApiClient
from app.web.formatting import count, loss

MAX_CHECKPOINTS = 100

Json = dict[str, Any]


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
