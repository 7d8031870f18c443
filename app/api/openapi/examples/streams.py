"""Responses of the streams of server-sent events, with one schema per event, in FastAPI's format."""

from __future__ import annotations

import json
from typing import Any

from app.api.openapi.examples.all_operations import EVENT, JOB_ID

CHANGED = {"object": "fine_tuning.job.changed", "job_id": JOB_ID}
CHANGED_SCHEMA = {
    "type": "object",
    "properties": {
        "object": {"const": CHANGED["object"]},
        "job_id": {"type": ["string", "null"], "description": "null: any job of the project may have changed."},
    },
    "required": ["object", "job_id"],
}
STATUS_SCHEMA = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
EVENT_SCHEMA = {"$ref": "#/components/schemas/EventBody"}


def _stream(description: str, example: str, *data: dict[str, Any]) -> dict[str, Any]:
    """The response of a stream. `data` are the possible schemas of the JSON in an event."""
    content = data[0] if len(data) == 1 else {"anyOf": list(data)}
    event = {
        "type": "object",
        "properties": {
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": content},
            "event": {"type": "string"},
            "id": {"type": "string"},
            "retry": {"type": "integer", "minimum": 0},
        },
    }
    return {
        "description": f"Server-sent events: {description}",
        "content": {"text/event-stream": {"itemSchema": event, "example": example}},
    }


EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: _stream(
        "the events as JSON, then an event named `end`.",
        f'data: {json.dumps(EVENT)}\nid: 37\n\nevent: end\ndata: {{"status": "succeeded"}}\n\n',
        EVENT_SCHEMA,
        STATUS_SCHEMA,
    ),
    204: {"description": "The job has ended, and `Last-Event-ID` is its last event: no more events will follow."},
}
CHANGE_STREAM: dict[int | str, dict[str, Any]] = {
    200: _stream("the id of each changed job.", f"data: {json.dumps(CHANGED)}\n\n", CHANGED_SCHEMA)
}
