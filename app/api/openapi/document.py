"""The OpenAPI document: generated from the routes, with the key, the error shape and an example for every operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.openapi.descriptions import add_descriptions
from app.api.openapi.examples import all_operations, extensions, organization, permissions, queue, webhooks
from app.api.openapi.examples import uploads as upload_examples
from app.api.schemas.common import ErrorBody
from app.domain.access import scopes

METHODS = ("get", "post", "put", "patch", "delete")
SECURITY_SCHEME = "ApiKey"
ERRORS = {
    "400": "The request is wrong; `param` says where.",
    "401": "No API key, or not a good one.",
    "403": "The key lacks the scope that this operation takes.",
    "404": "No such thing in this project.",
    "429": "Too many requests (`rate_limit_exceeded`), or a limit of the project is reached (`insufficient_quota`).",
    "503": "PostgreSQL does not answer; try again after `Retry-After` seconds.",
}
DUPLICATE_ERROR = {
    "409": "The first request with this `Idempotency-Key` has not ended; send it again after `Retry-After` seconds.",
}
POST_ERRORS = {"408": "The body came too slowly.", "413": "The body is too large."}
MORE_ERRORS = {
    "POST /v1/files": {
        "408": "The body came too slowly.", "413": "The file is too large.",
        "507": "The disk is full; nothing was stored.",
    },
    "POST /v1/uploads/{upload_id}/parts": {
        "408": "The body came too slowly.", "413": "The part is too large.",
        "507": "The disk is full; nothing was stored.",
    },
    "PUT /v1/uploads/{upload_id}/content": {
        "408": "The body came too slowly; what came is kept.", "507": "The disk is full; nothing more was stored.",
    },
    "GET /v1/files/{file_id}/content": {"416": "The range selects nothing."},
    "GET /v1/fine_tuning/jobs/{job_id}/adapter/archive": {"416": "The range selects nothing."},
    "DELETE /v1/models/{model}": {
        "403": "A base model belongs to the operator, a shared one to its project; or the key lacks the scope for this."
    },
}  # fmt: skip
RESPONSE_EXAMPLES = {
    operation: answer
    for module in (
        all_operations, organization, extensions, permissions, queue, upload_examples,
        webhooks,
    )
    for operation, answer in module.RESPONSE_EXAMPLES.items()
}  # fmt: skip
DESCRIPTION = """\
Fine-tuning jobs in OpenAI's wire contract, QLoRA on your own GPUs, and the adapter is yours.

The official `openai` client works unchanged: point `base_url` at `/v1` of this server. What is ours (`lora`,
`quantization`, `progress`, `adapter`, ...) stands beside OpenAI's fields and changes none of them. Every path under
`/v1` needs a key: `Authorization: Bearer YOUR_KEY`. Every error is `{"error": {message, type, param, code}}`. Every GET
can be asked as HEAD, too: the same headers, without the body.
"""


def build_openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _add_schemas(schemas)
    document["components"]["securitySchemes"] = {SECURITY_SCHEME: {"type": "http", "scheme": "bearer"}}
    for method, path, operation in _operations(document):
        _complete(method, path, operation)
    add_descriptions(document)
    return document


def _add_schemas(schemas: dict[str, Any]) -> None:
    """FastAPI's own error shape goes, ours comes; the create body is read by hand, so FastAPI does not know it."""
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for schema in (
        ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}"),
        all_operations.CREATE_JOB_SCHEMA,
        *extensions.BODY_SCHEMAS,
        *organization.BODY_SCHEMAS,
        *upload_examples.REQUEST_SCHEMAS,
        *webhooks.BODY_SCHEMAS,
    ):
        schema = dict(schema)
        schemas |= schema.pop("$defs", {})
        schemas[schema["title"]] = schema


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield method, path, operation


def _complete(method: str, path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for response in responses.values():
        if response["description"] == "Successful Response":  # FastAPI's
            response["description"] = "Success."
    name = f"{method.upper()} {path}"
    answer = RESPONSE_EXAMPLES.get(name)
    if answer is not None:
        responses["200"]["content"]["application/json"]["example"] = answer
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
        "content": {"application/json": {"schema": schema, "example": all_operations.ERROR}},
    }
