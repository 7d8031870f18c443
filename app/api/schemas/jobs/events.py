"""Response bodies of the events of a job."""

from __future__ import annotations

from typing import Any, Literal

from app.api.schemas.common import Body, ListBody, unix_seconds
from app.db.tables import JobEvent


class EventBody(Body):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    """The severity."""
    message: str
    """The event in a sentence."""
    type: Literal["message", "metrics"]
    """`metrics` for the metrics of a step, else `message`."""
    data: dict[str, Any]
    """For `metrics`: step, losses, accuracies, learning rate, speed."""


class EventList(ListBody):
    data: list[EventBody]


def render_event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": unix_seconds(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }
