"""`make openapi` writes the snapshot anew; review its diff."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.api.openapi.document import RESPONSE_EXAMPLES
from app.api.openapi.examples import all_operations
from app.api.openapi.examples import uploads as upload_examples
from app.api.schemas.answers import ChatCompletionBody, CompletionBody
from app.api.schemas.common import Deleted, ErrorBody
from app.api.schemas.deliveries import (
    DeliveryBody,
    DeliveryList,
    DeliveryTargetBody,
    DeliveryTargetDeleted,
    DeliveryTargetList,
)
from app.api.schemas.file_reports import FileReportBody
from app.api.schemas.files import FileBody, FileList
from app.api.schemas.jobs import parameters
from app.api.schemas.jobs.attempts import AttemptList
from app.api.schemas.jobs.checkpoints import AdapterBody, CheckpointList
from app.api.schemas.jobs.diffs import DiffBody
from app.api.schemas.jobs.evaluations import EvaluationBody, EvaluationList
from app.api.schemas.jobs.events import EventList
from app.api.schemas.jobs.exports import ExportBody, ExportList
from app.api.schemas.jobs.jobs import JobBody, JobList, OrganizationJobList
from app.api.schemas.jobs.metrics import LossCurveList, StepMetricsBody
from app.api.schemas.jobs.plans import PlanBody
from app.api.schemas.jobs.requests import CreateJob
from app.api.schemas.models import ModelBody, ModelList
from app.api.schemas.organization.audit_logs import AuditList
from app.api.schemas.organization.base_models import (
    BaseModelRemoved,
    ModelAliasBody,
    ModelAliasList,
    OrganizationBaseModelList,
    RegistrationBody,
    RegistrationList,
)
from app.api.schemas.organization.project_keys import KeyBody, KeyList, KeyRevoked, NewKey
from app.api.schemas.organization.projects import OwnProject, ProjectBody, ProjectList, ProjectWithUsage
from app.api.schemas.organization.retention import RetentionRuleList
from app.api.schemas.organization.secrets import RotationBody, SecretList
from app.api.schemas.organization.status import StatusBody
from app.api.schemas.permissions import PermissionList
from app.api.schemas.queue import QueueBody, WorkerList
from app.api.schemas.uploads import CompleteUpload, CreateUpload, PartBody, PartList, UploadBody
from app.api.schemas.webhooks import (
    WebhookDeliveryBody,
    WebhookDeliveryList,
    WebhookEndpointBody,
    WebhookEndpointDeleted,
    WebhookEndpointList,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from app.domain.jobs.parameters import collect
from app.main import create_app
from app.settings import Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")
MODELS: tuple[type[BaseModel], ...] = (
    AdapterBody, AttemptList, CheckpointList, Deleted, EventList,
    FileBody, FileList, JobBody, JobList, ModelAliasBody, ModelAliasList, ModelBody, ModelList,
    PlanBody, AuditList, KeyBody, KeyList, KeyRevoked, NewKey, OwnProject, ProjectBody, ProjectList, ProjectWithUsage,
    StepMetricsBody, LossCurveList, OrganizationJobList, PartBody, PartList, UploadBody, QueueBody, WorkerList,
    WebhookDeliveryBody, WebhookDeliveryList, WebhookEndpointBody, WebhookEndpointDeleted,
    WebhookEndpointList, WebhookEndpointTestResult, WebhookEndpointWithSecret, WebhookEventTypeList,
    BaseModelRemoved, OrganizationBaseModelList, RegistrationBody, RegistrationList, RetentionRuleList, RotationBody,
    SecretList, StatusBody, DiffBody, EvaluationBody, EvaluationList, ExportBody, ExportList, FileReportBody,
    PermissionList, DeliveryBody, DeliveryList, DeliveryTargetBody, DeliveryTargetDeleted, DeliveryTargetList,
    ChatCompletionBody, CompletionBody,
)  # fmt: skip


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document needs no server."""
    settings = Settings(
        database_url="postgresql://nowhere/x", redis_url="redis://nowhere", data_dir=tmp_path_factory.mktemp("data")
    )
    return create_app(settings).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def values_of(schema: dict[str, Any]) -> dict[str, Any]:
    """{field: what its value may be}."""
    beside = ("default", "description", "title")
    fields = schema["properties"].items()
    return {name: {key: value for key, value in field.items() if key not in beside} for name, field in fields}


class TestTheDocument:
    def test_is_the_one_that_was_reviewed(self, document: dict[str, Any]) -> None:
        reviewed = document | {"info": document["info"] | {"version": "any"}}
        text = json.dumps(reviewed, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        if os.environ.get("TUNERY_WRITE_SNAPSHOTS"):
            SNAPSHOT.write_text(text, encoding="utf-8")
        assert text == SNAPSHOT.read_text(encoding="utf-8"), "the API changed: see this file's first line"

    def test_has_an_example_for_every_answer_and_every_body(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            for body in (operation["responses"]["200"], operation.get("requestBody", {"content": {}})):
                assert all("example" in content for content in body["content"].values()), name

    def test_knows_no_422_and_no_detail(self, document: dict[str, Any]) -> None:
        assert "422" not in {status for _, operation in operations(document) for status in operation["responses"]}
        assert "ValidationError" not in json.dumps(document)
        assert '"detail"' not in json.dumps({name: o for name, o in operations(document) if "/v1" in name})

    def test_asks_for_the_key_exactly_where_it_is_needed(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            assert ("security" in operation) == ("/v1" in name)

    def test_has_a_409_exactly_where_a_call_takes_an_idempotency_key(self, document: dict[str, Any]) -> None:
        for name, operation in operations(document):
            takes_key = "Idempotency-Key" in {given["name"] for given in operation.get("parameters", ())}
            assert ("409" in operation["responses"]) == takes_key, name

    def test_says_of_the_fields_of_a_clone_what_it_says_of_a_create_body_and_asks_for_none(
        self, document: dict[str, Any]
    ) -> None:
        create, clone = (document["components"]["schemas"][name] for name in ("CreateJob", "CloneJob"))
        assert values_of(clone) == values_of(create)
        assert all(values_of(clone).values())
        assert "required" not in clone
        assert clone["additionalProperties"] is False

    def test_points_only_to_what_is_in_it(self, document: dict[str, Any]) -> None:
        for target in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
            assert target in document["components"]["schemas"]

    def test_says_of_a_stream_what_each_of_its_events_is(self, document: dict[str, Any]) -> None:
        """`schema` would be of an event, too, for a document of this version."""
        answers = [operation["responses"]["200"]["content"] for _, operation in operations(document)]
        streams = [content["text/event-stream"] for content in answers if "text/event-stream" in content]
        assert len(streams) == 4
        assert all("schema" not in stream for stream in streams)
        assert all(stream["itemSchema"]["properties"]["data"]["contentSchema"] for stream in streams)

    def test_names_every_operation_once(self, document: dict[str, Any]) -> None:
        names = [operation["operationId"] for _, operation in operations(document)]
        assert len(names) == len(set(names))


class TestTheExamples:
    @pytest.mark.parametrize("name", [name for name in RESPONSE_EXAMPLES if "/v1" in name])
    def test_have_the_documented_shape(self, document: dict[str, Any], name: str) -> None:
        schema = dict(operations(document))[name]["responses"]["200"]["content"]["application/json"]["schema"]
        (model,) = (model for model in MODELS if schema["$ref"].endswith(f"/{model.__name__}"))
        model.model_validate(RESPONSE_EXAMPLES[name])

    def test_belong_to_operations(self, document: dict[str, Any]) -> None:
        assert RESPONSE_EXAMPLES.keys() <= dict(operations(document)).keys()

    def test_of_requests_and_errors_are_valid(self) -> None:
        CreateJob.model_validate(all_operations.CREATE_JOB)
        CreateUpload.model_validate(upload_examples.CREATE_UPLOAD)
        CompleteUpload.model_validate(upload_examples.COMPLETE_UPLOAD)
        ErrorBody.model_validate(all_operations.ERROR)


class TestRequestParameters:
    def test_the_document_has_those_that_a_request_may_have(self) -> None:
        supervised, dpo, every, lora, quantization = (
            schema["anyOf"][0]["properties"].keys()
            for schema in (
                parameters.SUPERVISED_HYPERPARAMETERS,
                parameters.DPO_HYPERPARAMETERS,
                parameters.ALL_HYPERPARAMETERS,
                parameters.LORA,
                parameters.QUANTIZATION,
            )
        )
        assert every == set(collect.IN_HYPERPARAMETERS)
        for method, names in (("supervised", supervised), ("dpo", dpo)):
            assert names == {name for name in every if collect.METHOD_OF.get(name, method) == method}
        assert (lora, quantization) == (collect.LORA_KEYS.keys(), collect.QUANTIZATION_KEYS.keys())
