"""Descriptions in the OpenAPI document of parameters, and of fields that stand below no field: those of many schemas.

A test lists every field of the document without a description.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from app.domain.jobs.lora_parameters import LoraParameters
from app.domain.jobs.parameters import HYPERPARAMETERS, QuantizationParameters
from app.domain.methods import METHOD_PARAMETERS

BY_FIELD = {
    "id": "The id, for every call that takes one.",
    "object": "The type of the object.",
    "created_at": "Seconds since 1970.",
    "bytes": "Size in bytes.",
    "filename": "A file name without a path.",
    "sha256": "SHA-256 of the bytes, in hexadecimal digits.",
    "message": "The problem, the allowed values and what to do.",
    "model": "A base model, or an `ft:` model.",
    "hyperparameters": 'The resolved hyperparameters; none of them is "auto".',
    "lora": "The resolved parameters of the adapter.",
    "quantization": "The quantization of the frozen base model; null: 16 bits.",
    "seed": "The seed of the order of the examples and of the adapter's initial weights. Default: random.",
    "training_file": "The id of the training file.",
    "validation_file": "The id of a file whose loss is measured and that is not used for training.",
    "metadata": "Up to 16 pairs of your own; lists of jobs can be filtered by them.",
    "base_model": "The base model of the adapter, which is required to use it.",
    "fine_tuning_job_id": "The job that created it.",
    "fine_tuned_model": "The `ft:` name of the result.",
    "step_number": "Optimizer steps done.",
    "total_steps": "Planned optimizer steps of the whole job.",
    "trained_tokens": "Tokens that the model processes in all epochs, without padding.",
    "has_more": "Whether another page follows: send `after` with the last id.",
    "first_id": "The first item's id; null for an empty page.",
    "last_id": "The last item's id; null for an empty page.",
    "deleted": "Always true: a failed deletion is an error.",
    "project_id": "The project.",
    "status": "The status.",
    "data": "The items of this page.",
}
PARAMETERS = {
    "actor_ids[]": "Only changes by these actors: ids of keys, or operators.",
    "delivery_id": "The delivery.",
    "effective_at[gt]": "Only later than this second (since 1970).",
    "effective_at[gte]": "Only in this second (since 1970) or later.",
    "effective_at[lt]": "Only earlier than this second (since 1970).",
    "effective_at[lte]": "Only in this second (since 1970) or earlier.",
    "endpoint_id": "The webhook endpoint.",
    "event_types[]": "Only these types of entries, such as `fine_tuning.jobs.cancel`.",
    "evaluation_id": "The evaluation.",
    "export_id": "The export.",
    "file_id": "The file.",
    "include_archived": "Include archived projects.",
    "include_revoked": "Include revoked keys.",
    "job_id": "The job.",
    "model": "The name of the model; slashes may be raw or encoded.",
    "name": "The alias; slashes may be raw or encoded.",
    "key_id": "The API key.",
    "permission_id": "The permission.",
    "project_id": "The project.",
    "project_ids[]": "Only changes of these projects, or with their keys.",
    "purpose": "Only files with this purpose.",
    "resource_ids[]": "Only entries with one of these ids: of a job, a file, a key, ...",
    "target_id": "The delivery target, by its id or name.",
    "upload_id": "The upload.",
    "worker_id": "The worker: its `id`, its `name`, or the part of the name before `#`.",
}
# The models of the request parameters that are fields of these schemas, too.
PARAMETER_MODELS: dict[str, tuple[type[BaseModel], ...]] = {
    "Hyperparameters": (*HYPERPARAMETERS, *METHOD_PARAMETERS),
    "LegacyHyperparameters": HYPERPARAMETERS,
    "LoraSpec": (LoraParameters,),
    "QuantizationSpec": (QuantizationParameters,),
}


def add_descriptions(document: dict[str, Any]) -> None:
    """Add a description to every field and parameter of the document without one."""
    for name, schema in document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            _describe(inner, _field_description(name, field))
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                _describe(parameter, PARAMETERS.get(parameter["name"]))


def _field_description(schema: str, field: str) -> str | None:
    for model in PARAMETER_MODELS.get(schema, ()):
        if field in model.model_fields:
            return model.model_fields[field].description
    return BY_FIELD.get(field)


def _describe(inner: dict[str, Any], description: str | None) -> None:
    """Add the description if there is none, on one line: those below fields are wrapped."""
    if text := inner.get("description") or description:
        inner["description"] = " ".join(text.split())
