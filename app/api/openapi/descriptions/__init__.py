"""Descriptions of the fields and parameters in the OpenAPI document.

`"Schema.field"` goes before `"field"`. A test names every field of the document that is left without a meaning.
"""

from __future__ import annotations

from typing import Any

from app.api.openapi.descriptions import basics, files, jobs, organization, plans, queue, webhooks
from app.api.schemas.jobs import parameters as knobs

BY_FIELD = {
    "id": "The id, for every call that takes one.",
    "object": "The kind of thing this is.",
    "created_at": "Seconds since 1970.",
    "bytes": "Size in bytes.",
    "filename": "A bare name, never a path.",
    "sha256": "SHA-256 of the bytes, in hexadecimal digits.",
    "message": "What was seen, what is allowed and what to do.",
    "model": "A base model, or an `ft:` model.",
    "method": "How it is trained.",
    "hyperparameters": 'The numbers that training runs with; none of them is "auto" any more.',
    "lora": "The adapter, every knob resolved.",
    "quantization": "How the frozen base is held; null: in 16 bits.",
    "seed": "Of the order of the examples and of the adapter's first values; drawn if none was given.",
    "training_file": "The id of the file it learns from.",
    "validation_file": "The id of a file whose loss is measured and never learned from.",
    "metadata": "Your own words about the job, up to 16 pairs; lists can be filtered by them.",
    "base_model": "The base model under the adapter; it is of no use without it.",
    "fine_tuning_job_id": "The job that made it.",
    "fine_tuned_model": "The `ft:` name of the result.",
    "step_number": "Optimizer steps done.",
    "total_steps": "Optimizer steps of the whole job, as planned.",
    "trained_tokens": "Tokens that go through the model, times epochs; padding is never counted.",
    "has_more": "Whether another page follows: ask with `after` set to the last id.",
    "first_id": "The first item's id; null on an empty page.",
    "last_id": "The last item's id; null on an empty page.",
    "deleted": "Always true: what could not be deleted is an error.",
    "project_id": "The project.",
    "status": "How it stands.",
    "file": "The bytes. The filename that comes with them is kept as a label.",
    "data": "The items of this page.",
    "expires_after[anchor]": "From when on: its creation.",
    "expires_after[seconds]": "After how long the file is deleted by itself: an hour to 30 days.",
}  # fmt: skip
BY_SCHEMA = (
    basics.BY_SCHEMA
    | files.BY_SCHEMA
    | jobs.BY_SCHEMA
    | organization.BY_SCHEMA
    | plans.BY_SCHEMA
    | queue.BY_SCHEMA
    | webhooks.BY_SCHEMA
)
# What one schema leaves unsaid, another says that has the same fields.
FALLBACK_SCHEMAS = {
    "NewKey": "KeyBody",
    "OrganizationJob": "JobBody",
    "OwnProject": "ProjectWithUsage",
    "ProjectWithUsage": "ProjectBody",
    "UpdateKey": "CreateKey",
    "UpdateProject": "CreateProject",
    "UpdateWebhookEndpoint": "CreateWebhookEndpoint",
    "WebhookEndpointWithSecret": "WebhookEndpointBody",
}
PARAMETERS = {
    "actor_ids[]": "Only what these did: ids of keys, or operators.",
    "delivery_id": "The delivery.",
    "effective_at[gt]": "Only later than this second (since 1970).",
    "effective_at[gte]": "Only in this second (since 1970) or later.",
    "effective_at[lt]": "Only earlier than this second (since 1970).",
    "effective_at[lte]": "Only in this second (since 1970) or earlier.",
    "endpoint_id": "The webhook endpoint.",
    "event_types[]": "Only these types of entries, such as `fine_tuning.jobs.cancel`.",
    "export_id": "The export.",
    "file_id": "The file.",
    "include_archived": "Also those that were archived.",
    "include_revoked": "Also those that were revoked.",
    "job_id": "The job.",
    "model": "A model by its name; slashes in it may be raw or encoded.",
    "key_id": "The API key.",
    "permission_id": "The permission.",
    "project_id": "The project.",
    "project_ids[]": "Only what was done to these projects, or with their keys.",
    "purpose": "Files of this purpose alone.",
    "resource_ids[]": "Only entries that name one of these ids: of a job, a file, a key, ...",
    "upload_id": "The upload.",
}
BY_REQUEST_PARAMETER = {
    "Hyperparameters": knobs.TRAINING_KNOBS | knobs.DPO_KNOBS,
    "LegacyHyperparameters": knobs.TRAINING_KNOBS,
    "LoraSpec": knobs.LORA_KNOBS,
    "QuantizationSpec": knobs.QUANTIZATION["anyOf"][0]["properties"],
}


def add_descriptions(document: dict[str, Any]) -> None:
    """Give every field and parameter of the document its description, where it has none."""
    for name, schema in document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            _describe(inner, _of_field(name, field))
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                _describe(parameter, PARAMETERS.get(parameter["name"]))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                for field, inner in content["schema"].get("properties", {}).items():
                    _describe(inner, BY_FIELD.get(field))


def _of_field(schema: str, field: str) -> str | None:
    knob = BY_REQUEST_PARAMETER.get(schema, {}).get(field)
    return knob["description"] if knob else _by_schema(schema, field) or BY_FIELD.get(field)


def _by_schema(schema: str | None, field: str) -> str | None:
    while schema is not None and f"{schema}.{field}" not in BY_SCHEMA:
        schema = FALLBACK_SCHEMAS.get(schema)
    return BY_SCHEMA.get(f"{schema}.{field}")


def _describe(inner: dict[str, Any], meaning: str | None) -> None:
    if meaning is not None and not inner.get("description"):
        inner["description"] = meaning
