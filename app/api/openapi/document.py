"""The OpenAPI document: generated from the routes, with security scheme, errors, and examples of every operation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.api.openapi.descriptions import add_descriptions
from app.api.schemas.common import ErrorBody
from app.api.transport.json_body import request_body
from app.domain.access import scopes

EXAMPLES = Path(__file__).with_name("examples.json")
REF = "#/components/schemas/{model}"
METHODS = ("get", "post", "put", "patch", "delete")
SECURITY_SCHEME = "ApiKey"
ERRORS = {
    "400": "The request is invalid; `param` names the field.",
    "401": "No API key, or an invalid one.",
    "403": "The key lacks the scope that this operation requires.",
    "404": "No such object in this project.",
    "429": "Too many requests (`rate_limit_exceeded`), or a limit of the project is reached (`insufficient_quota`).",
    "503": "PostgreSQL does not answer; try again after `Retry-After` seconds.",
}
DUPLICATE_ERROR = {
    "409": "The first request with this `Idempotency-Key` is still running; retry after `Retry-After` seconds.",
}
POST_ERRORS = {"408": "The body arrived too slowly.", "413": "The body is too large."}
ANSWER_ERRORS = {
    "413": "The body is larger than the operator allows, by default 2 MiB.",
    "415": "The body is compressed.",
    "502": "The engine failed.",
    "503": "Nothing serves the model (`model_not_served`), or no engine that serves it responds; or PostgreSQL.",
}
MORE_ERRORS = {
    "POST /v1/chat/completions": ANSWER_ERRORS,
    "POST /v1/completions": ANSWER_ERRORS,
    "POST /v1/files": {
        "408": "The body arrived too slowly.",
        "413": "The file is too large.",
        "507": "The disk is full; nothing was stored.",
    },
    "POST /v1/uploads/{upload_id}/parts": {
        "408": "The body arrived too slowly.",
        "413": "The part is too large.",
        "507": "The disk is full; nothing was stored.",
    },
    "PUT /v1/uploads/{upload_id}/content": {
        "408": "The body arrived too slowly; the received bytes are stored.",
        "507": "The disk is full; nothing more was stored.",
    },
    "GET /v1/files/{file_id}/content": {"416": "The range selects nothing."},
    "GET /v1/fine_tuning/jobs/{job_id}/adapter/archive": {"416": "The range selects nothing."},
    "DELETE /v1/models/{model}": {
        "403": "The model is a base model or belongs to another project, or the key lacks the scope."
    },
}
ERROR = {
    "message": "No such File object: file-123",
    "type": "invalid_request_error",
    "param": "id",
    "code": "not_found",
    "doc_url": "/docs/reference/errors/#not_found",
}
DESCRIPTION = """\
Fine-tuning jobs with OpenAI's API, QLoRA on your own GPUs, and adapters to download.

The official `openai` client works unchanged: set `base_url` to `/v1` of this server. Additional fields (`lora`,
`quantization`, `progress`, `adapter`, ...) extend OpenAI's fields and change none of them. Every path under `/v1`
requires a key: `Authorization: Bearer YOUR_KEY`. Every error is `{"error": {message, type, param, code, doc_url}}`.
Every GET operation also supports HEAD: the same headers, without the body.
"""


def build_openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=True,
    )
    components = document["components"]
    components["securitySchemes"] = {SECURITY_SCHEME: {"type": "http", "scheme": "bearer"}}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    _add_schema(document, ErrorBody)
    _add_request_bodies(document, app)
    examples = json.loads(EXAMPLES.read_bytes())
    for method, path, operation in _operations(document):
        _complete_operation(method, path, operation)
        _add_examples(operation, examples.get(f"{method.upper()} {path}", {}))
    add_descriptions(document)
    return document


def _add_request_bodies(document: dict[str, Any], app: FastAPI) -> None:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema and (body := request_body(route.endpoint)):
            content = {"application/json": {"schema": _add_schema(document, body.model)}}
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                operation["requestBody"] = {"required": body.is_required, "content": content}


def _add_schema(document: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    """Add the schema of a model, and return a reference to it."""
    schema = model.model_json_schema(ref_template=REF)
    document["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
    return {"$ref": REF.format(model=model.__name__)}


def _add_examples(operation: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Add the recorded values of parameters, body and responses to an operation."""
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in recorded.get("parameters", {}):
            parameter["example"] = recorded["parameters"][parameter["name"]]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content["example"] = recorded.get("request")
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            if f"{status} {media_type}" in recorded.get("responses", {}):
                content["example"] = recorded["responses"][f"{status} {media_type}"]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield method, path, operation


def _complete_operation(method: str, path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for response in responses.values():
        if response["description"] == "Successful Response":  # FastAPI's default
            response["description"] = "Success."
    name = f"{method.upper()} {path}"
    if path.startswith("/v1"):
        operation["security"] = [{SECURITY_SCHEME: []}]
        operation["x-scope"] = scopes.required_scope(method.upper(), path)
        errors = (
            ERRORS
            | (POST_ERRORS if method == "post" else {})
            | (DUPLICATE_ERROR if _takes_idempotency_key(operation) else {})
        )
        errors |= MORE_ERRORS.get(name, {})
        responses |= {status: _error(description) for status, description in errors.items()}
    operation["responses"] = dict(sorted(responses.items()))


def _takes_idempotency_key(operation: dict[str, Any]) -> bool:
    return any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ()))


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    return {
        "description": description,
        "content": {"application/json": {"schema": schema, "example": {"error": ERROR}}},
    }
