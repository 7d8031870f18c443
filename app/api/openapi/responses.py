"""Bodies, parameters and responses that are no pydantic models: bytes, forms, streams of server-sent events.

In FastAPI's format. Their examples are in examples.json, as those of all operations are.
"""

from __future__ import annotations

from typing import Any

from app.api.schemas.answers import ChatCompletionBody, CompletionBody

OpenApi = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}
METADATA_FILTER: OpenApi = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "metadata[key]=value for each pair, or metadata=null.",
        }
    ]
}


def _bytes(description: str, media_type: str) -> dict[str, Any]:
    """A response with bytes. For `*/*`, any type, there is no schema."""
    schema = {} if media_type == "*/*" else {"schema": {"type": "string", "contentMediaType": media_type}}
    return {"description": description, "content": {media_type: schema}}


def _content(whole: str, media_type: str) -> Responses:
    """The responses of a download."""
    redirect = "The content is at the address in Location: files are in a bucket, and redirects are set."
    return {
        200: _bytes(whole, media_type),
        206: _bytes("The requested range.", media_type),
        304: {"description": "The client has the current content (If-None-Match)."},
        307: {"description": redirect},
    }


CONTENT = _content("The whole file; its media type is derived from its name.", "*/*")
ARCHIVE = _content("The whole archive.", "application/x-tar")
NOT_MODIFIED: Responses = {304: {"description": "Unchanged since the ETag in If-None-Match."}}
METRICS = NOT_MODIFIED | {
    200: _bytes("A row per step; with format=csv the columns of the job's results file.", "text/csv")
}
LOG = NOT_MODIFIED | {200: _bytes("The end of the log.", "text/plain")}


def _stream(*data: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """The content of a stream. `data` are the possible schemas of the JSON in an event."""
    content = data[0] if len(data) == 1 else {"anyOf": list(data)}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {"text/event-stream": {"itemSchema": {"type": "object", "properties": {"data": text} | properties}}}


EVENT_FIELDS = {
    "event": {"type": "string"},
    "id": {"type": "string"},
    "retry": {"type": "integer", "minimum": 0},
}
CHANGE = {
    "type": "object",
    "properties": {
        "object": {"const": "fine_tuning.job.changed"},
        "job_id": {"type": ["string", "null"], "description": "null: any job of the project may have changed."},
    },
    "required": ["object", "job_id"],
}
END = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
EVENT_STREAM: Responses = {
    200: {
        "description": "Server-sent events: the events as JSON, then an event named `end`.",
        "content": _stream({"$ref": "#/components/schemas/EventBody"}, END, **EVENT_FIELDS),
    },
    204: {"description": "The job has ended, and `Last-Event-ID` is its last event: no more events will follow."},
}
CHANGE_STREAM: Responses = {
    200: {
        "description": "Server-sent events: the id of each changed job.",
        "content": _stream(CHANGE, **EVENT_FIELDS),
    }
}
CHUNK = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "model": {"type": "string"}, "choices": {"type": "array"}},
}
ANSWER = {
    "description": "The answer; with `stream` server-sent events, at last `[DONE]`.",
    "content": _stream(CHUNK),
}
CHAT_ANSWER: Responses = {200: ANSWER | {"model": ChatCompletionBody}}
COMPLETION_ANSWER: Responses = {200: ANSWER | {"model": CompletionBody}}


def _body(media_type: str, schema: dict[str, Any]) -> OpenApi:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _form(*required: str, **fields: Any) -> OpenApi:
    schema = {"type": "object", "required": list(required), "additionalProperties": False, "properties": fields}
    return _body("multipart/form-data", schema)


UPLOAD_FILE = _form(
    "file",
    "purpose",
    purpose={
        "enum": ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"],
        "description": "Jobs take files with purpose fine-tune.",
    },
    file=BYTES | {"description": "The content of the file. The filename in the form is stored as a label."},
    **{
        "expires_after[anchor]": {
            "const": "created_at",
            "description": "The start of the period: the creation of the file.",
        },
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": 3600,
            "maximum": 2592000,
            "description": "The file is deleted automatically after this time: an hour to 30 days.",
        },
        "columns": {
            "type": "string",
            "description": "Makes chat examples of a table: the columns of input and output (`text,label`), and "
            "optionally of the system prompt; a name with a comma in double quotes. #1, #2, ... in a table whose first "
            "row is no header.",
        },
        "held_out_percent": {
            "type": "integer",
            "minimum": 1,
            "maximum": 50,
            "description": "Keeps this share of the rows in a second file, for validation.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": 2147483647,
            "description": "Of the choice of these rows. Default: 0.",
        },
    },
)
UPLOAD_PART = _form("data", data=BYTES | {"description": "The bytes of this part, up to 64 MiB."})
UPLOAD_CONTENT = _body("application/octet-stream", BYTES) | {
    "parameters": [
        {
            "name": "Content-Range",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": r"^bytes \d+-\d+/(\d+|\*)$"},
            "description": "The bytes in the body. Default: the whole content.",
        }
    ]
}
