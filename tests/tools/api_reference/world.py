"""A service in which every example of the reference can be sent, with ids that exist in place of those shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select

from app.api.openapi import request_examples
from app.api.openapi.examples import all_operations, answers, deliveries, extensions, organization, permissions
from app.api.openapi.examples import evaluations as evaluation_examples
from app.api.openapi.examples import uploads as upload_examples
from app.api.openapi.examples import webhooks as webhook_examples
from app.api.openapi.request_examples import PARAMETER, ExampleRequest, example_request
from app.db.base_models import models
from app.db.engine import Sessions, transaction
from app.db.jobs import jobs
from app.db.tables import Job, Project
from app.db.webhooks import endpoints
from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.states import TERMINAL
from app.storage import LocalStorage
from tests.answering_engine import deliver
from tests.factories import (
    BASE_MODEL,
    NUMBERS,
    chat_lines,
    make_file,
    make_job,
    make_project,
    make_succeeded_job,
    validate_job,
)
from tools.api_reference.__main__ import document

Ids = dict[str, str]  # what an example shows -> what exists

# The state in which an operation wants its job; any other takes a succeeded one.
STATES = {
    "POST /v1/fine_tuning/jobs/{job_id}": "queued",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": "queued",
    "POST /v1/fine_tuning/jobs/{job_id}/pause": "queued",
    "POST /v1/fine_tuning/jobs/{job_id}/resume": "paused",
}


@dataclass(frozen=True)
class World:
    sessions: Sessions
    storage: LocalStorage
    project: Project
    http: httpx2.Client  # with an admin key of the project
    receiver_url: str  # of webhooks
    engine_url: str  # of an inference engine

    def operations(self) -> dict[str, Mapping[str, Any]]:
        return {
            f"{method.upper()} {path}": operation
            for path, item in document()["paths"].items()
            for method, operation in item.items()
        }

    def request(self, name: str) -> ExampleRequest:
        method, path = name.split(" ", 1)
        return example_request(method, path, self.operations()[name], document())

    def ids(self, name: str) -> Ids:
        """Everything that the example of this operation names, made anew."""
        ids = self._rows(STATES.get(name, "succeeded"))
        ids |= SPECIAL.get(name, lambda _, __: {})(self, ids)
        request = self.request(name)
        for position, shown in enumerate(request.values):
            if shown not in ids:
                ids[shown] = self._created(request, position, ids)
        return ids

    def send(self, name: str, ids: Ids) -> httpx2.Response:
        """The example of an operation with a JSON body, or without one."""
        request = self.request(name)
        content = None if request.body is None else replaced(request_examples.json_text(request.body), ids)
        headers = {"Content-Type": "application/json"} if content else {}
        return self.http.request(request.method, replaced(request.url, ids), content=content, headers=headers)

    def _rows(self, state: str) -> Ids:
        with transaction(self.sessions) as session:
            for waiting in session.scalars(select(Job).where(Job.state.not_in(TERMINAL))):
                jobs.cancel(session, self.project.id, waiting.id)
            if state == "succeeded":
                job = make_succeeded_job(session, self.storage, self.project)
            else:
                job = make_job(session, self.project, make_file(session, self.storage, self.project))
                job = validate_job(session)
            if state == "paused":
                job = jobs.pause(session, self.project.id, job.id) or job
            other = make_project(session, f"other-{next(NUMBERS)}")
            return {
                all_operations.JOB_ID: job.id,
                all_operations.FILE_ID: job.training_file_id,
                all_operations.TUNED: job.fine_tuned_model or "",
                permissions.OTHER_PROJECT: other.id,
                all_operations.MODEL: BASE_MODEL,
                organization.PROJECT["name"]: f"new-{next(NUMBERS)}",
                organization.REGISTERED: f"new-base-{next(NUMBERS)}",
                webhook_examples.CREATE["url"]: self.receiver_url,
                deliveries.TARGET_NAME: f"{deliveries.TARGET_NAME}-{next(NUMBERS)}",
            }

    def _created(self, request: ExampleRequest, position: int, ids: Ids) -> str:
        """The id of a thing made by a POST to where such things are: what stands before the parameter in the path."""
        collection = request.template[: [*PARAMETER.finditer(request.template)][position].start()].rstrip("/")
        creating = f"POST {collection}"
        assert creating in self.operations(), f"no id for {request.template}: say in SPECIAL how to come by one"
        answer = self.send(creating, ids)
        assert answer.status_code < 300, f"{creating}: {answer.text}"
        made = answer.json()
        return str((made["data"][0] if made.get("object") == "list" else made)["id"])


def replaced(text: str, ids: Ids) -> str:
    """Longest first: an `ft:` name has its base model's name in it."""
    for shown in sorted(ids, key=len, reverse=True):
        text = text.replace(shown, ids[shown])
    return text


TRAINING_DATA = chat_lines()  # what an example sends as a file


def a_declared_upload(world: World, _: Ids) -> Ids:
    """Of as many bytes as there are."""
    asked = upload_examples.CREATE_UPLOAD | {"bytes": len(TRAINING_DATA)}
    return {upload_examples.UPLOAD_ID: world.http.post("/v1/uploads", json=asked).json()["id"]}


def an_upload_with_its_parts(world: World, ids: Ids) -> Ids:
    upload = a_declared_upload(world, ids)
    (upload_id,) = upload.values()
    halves = TRAINING_DATA[:100], TRAINING_DATA[100:]
    added = [world.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": half}).json()["id"] for half in halves]
    md5 = hashlib.md5(TRAINING_DATA, usedforsecurity=False).hexdigest()
    return (
        upload | dict(zip(upload_examples.PART_IDS, added, strict=True)) | {upload_examples.COMPLETE_UPLOAD["md5"]: md5}
    )


def a_clone(world: World, ids: Ids) -> Ids:
    cloned = world.http.post(f"/v1/fine_tuning/jobs/{ids[all_operations.JOB_ID]}/clone", json={}).json()
    return {extensions.CLONE_ID: cloned["id"]}


def a_delivery(world: World, ids: Ids) -> Ids:
    endpoint = world.send("POST /v1/webhook_endpoints", ids).json()["id"]
    with transaction(world.sessions) as session:
        endpoints.announce(session, world.project.id, webhook_examples.EVENTS[0], json.dumps({"id": "ftjob-1"}))
    deliveries = world.http.get(f"/v1/webhook_endpoints/{endpoint}/deliveries").json()["data"]
    return {webhook_examples.ENDPOINT_ID: endpoint, webhook_examples.DELIVERY["id"]: deliveries[0]["id"]}


def an_evaluation_file(world: World, _: Ids) -> Ids:
    with transaction(world.sessions) as session:
        file = make_file(session, world.storage, world.project, None, "evals", "heldout.jsonl", line_count=None)
    return {evaluation_examples.EVALUATION_FILE: file.id}


def a_target(world: World, ids: Ids) -> Ids:
    return {deliveries.TARGET_ID: world.send("POST /v1/delivery_targets", ids).json()["id"]}


def a_delivered_model(world: World, ids: Ids) -> Ids:
    with transaction(world.sessions) as session:
        job = session.get_one(Job, ids[all_operations.JOB_ID])
        deliver(session, job, world.engine_url)
    return {}


def a_base_model(world: World, ids: Ids) -> Ids:
    """One that no other example needs."""
    with transaction(world.sessions) as session:
        [row] = [row for row in models.list_base(session) if row.name == BASE_MODEL]
        entry = CatalogEntry.model_validate(row.entry)
        name = ids[organization.REGISTERED]
        models.register(session, name, Path(row.directory), row.files, row.manifest_sha256, entry)
    return {}


# "METHOD path" -> what else its example names: {shown: existing}, made by whatever it takes.
DELIVERIES = "/v1/webhook_endpoints/{endpoint_id}/deliveries"
ONE_EVALUATION = "/v1/fine_tuning/jobs/{job_id}/evaluations/{evaluation_id}"
EVALUATIONS = (
    "POST /v1/fine_tuning/jobs/{job_id}/evaluations", f"GET {ONE_EVALUATION}", f"POST {ONE_EVALUATION}/cancel"
)  # fmt: skip
SPECIAL: dict[str, Callable[[World, Ids], Ids]] = {
    "PUT /v1/uploads/{upload_id}/content": a_declared_upload,
    "POST /v1/uploads/{upload_id}/complete": an_upload_with_its_parts,
    "GET /v1/fine_tuning/jobs/{job_id}/diff": a_clone,
    **dict.fromkeys(EVALUATIONS, an_evaluation_file),
    answers.CHAT: a_delivered_model,
    answers.COMPLETIONS: a_delivered_model,
    "DELETE /v1/organization/base_models/{model}": a_base_model,
    f"POST {deliveries.DELIVERIES}": a_target,
    f"GET {deliveries.DELIVERIES}/{{delivery_id}}": a_target,
    f"DELETE {deliveries.DELIVERIES}/{{delivery_id}}": a_target,
    f"GET {DELIVERIES}": a_delivery,
    f"GET {DELIVERIES}/{{delivery_id}}": a_delivery,
    f"POST {DELIVERIES}/{{delivery_id}}/redeliver": a_delivery,
}
