"""Pass a request for an answer on to an engine that serves its model."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpcore2

from app.db.deliveries.credentials import NoSecretKey, decrypt
from app.db.fast_reads.answers import ServedModel, ServingTarget, find_served_model
from app.db.fast_reads.pool import AsyncConnections
from app.domain.answers.engine_answers import EventTranslator, engine_error, engine_json, event_of, to_json
from app.domain.datasets.template_arguments import KEY
from app.domain.error_text.json_text import as_json
from app.errors import EngineFailed, EngineUnavailable, ModelNotServed, TuneryError
from app.log import get_logger
from app.services.answers.engine_client import (
    NETWORK_ERRORS,
    EngineClient,
    EngineServer,
    EngineUnreachable,
    away_text,
    header,
    read_body,
)
from app.services.base_models import model_not_found

EVENT_STREAM = "text/event-stream"
REPLACEMENT_SECONDS = 2.0  # a name that is replaced is not loaded for less than a second
REPLACEMENT_POLL_SECONDS = 0.1

log = get_logger(__name__)


class NameNotLoaded(EngineUnreachable):
    """The server lacks a fixed served name, perhaps for the moment in which a delivery replaces its adapter."""


@dataclass(frozen=True)
class Question:
    """A request for an answer: its path, its body, and who sends it."""

    project_id: str
    path: str
    body: Mapping[str, Any]
    request_id: str = ""

    @property
    def model(self) -> str:
        return str(self.body["model"])


@dataclass(frozen=True)
class EngineAnswer:
    """A response of 2xx: a body, or `events` that are passed on as they arrive."""

    target: str | None  # None: a worker, on trial
    status: int
    body: bytes = b""
    events: AsyncIterator[bytes] | None = None


async def find_model(connections: AsyncConnections, project_id: str, model: str) -> ServedModel:
    """The model, with the targets that have it. Raises NotFound."""
    served = await find_served_model(connections, project_id, model)
    if served is None:
        raise model_not_found(model)
    return served


def with_arguments(question: Question, served: ServedModel) -> Question:
    """The question with the arguments of the chat template with which the model was trained, below its own ones."""
    own = {} if (given := question.body.get(KEY)) is None else given
    if not served.chat_template_kwargs or not isinstance(own, dict):  # the engine refuses another type
        return question
    of_request = {name: value for name, value in own.items() if value is not None}
    return replace(question, body={**question.body, KEY: {**served.chat_template_kwargs, **of_request}})


def servers_of(served: ServedModel, encryption_keys: Sequence[str]) -> list[EngineServer]:
    """The servers that have the model, in a random order; none if it was not delivered."""
    servers = [server for target in served.targets for server in _servers(target, served, encryption_keys)]
    return random.sample(servers, len(servers))


def not_served_error(model: str) -> ModelNotServed:
    return ModelNotServed(
        f"Nothing serves {as_json(model)}: it was not delivered to an inference engine. Create a delivery target of "
        "kind vllm or sglang (`tunery targets create`), and deliver the model to it (`tunery jobs deliver JOB --to "
        "TARGET`).",
        "model",
    )


async def ask(client: EngineClient, servers: Sequence[EngineServer], question: Question) -> EngineAnswer:
    """The answer of the first server that gives one.

    Raises what `engine_error` returns for a refusal, EngineFailed, and EngineUnavailable if no server can be asked.
    """
    problems: dict[str, str] = {}
    failed: EngineFailed | None = None
    given_up_at = time.monotonic() + REPLACEMENT_SECONDS
    while True:
        lacking = []
        for server in client.in_order(servers):
            try:
                return await _ask_server(client, server, question)
            except EngineUnreachable as error:
                if server.url not in problems:
                    log.warning("engine not asked", target=server.target, reason=str(error))
                problems[server.url] = str(error)
                if isinstance(error, NameNotLoaded):
                    lacking.append(server)
            except EngineFailed as error:
                log.warning("engine failed", target=server.target, reason=error.message)
                failed = error
        if not lacking or time.monotonic() > given_up_at:
            break
        servers = lacking
        await asyncio.sleep(REPLACEMENT_POLL_SECONDS)
    if failed is not None:
        raise failed
    count = "1 server was" if len(problems) == 1 else f"{len(problems)} servers were"
    raise EngineUnavailable(
        f"No engine that serves {as_json(question.model)} can be asked: {count} tried "
        f"({'; '.join(dict.fromkeys(problems.values()))}). Try again in a few seconds; if it stays so, start the "
        "engine, or correct its delivery target (`tunery targets list`)."
    )


async def _ask_server(client: EngineClient, server: EngineServer, question: Question) -> EngineAnswer:
    """Raises EngineUnreachable, and what `engine_error` returns."""
    if server.problem is not None:
        raise EngineUnreachable(server.problem)
    served = server.served_model or await client.base_model(server)
    body = to_json({**question.body, "model": served})
    response = await client.send(server, "POST", question.path, body, question.request_id)
    if 200 <= response.status < 300 and (header(response, b"content-type") or "").startswith(EVENT_STREAM):
        return EngineAnswer(server.target, response.status, events=_events(response, served, question, client))
    content = await read_body(response, client.timeout_seconds)
    owner, size_bytes, status = question.project_id, len(content), response.status
    if 200 <= status < 300:
        renamed = await client.parse(owner, size_bytes, _renamed, content, served, question.model)
        return EngineAnswer(server.target, status, renamed)
    retry_after = header(response, b"retry-after")
    raise await client.parse(owner, size_bytes, _error, status, content, retry_after, served, question.model)


def _error(status: int, content: bytes, retry_after: str | None, served: str, requested: str) -> Exception:
    """EngineUnreachable and EngineFailed, after which another server is asked, or the engine's refusal."""
    if status in (401, 403):
        return EngineUnreachable(f"it refuses the API key ({status}): set credentials.api_key of its delivery target")
    if status == 404:
        kind = NameNotLoaded if served != requested else EngineUnreachable
        return kind("it does not have the model now (404); what an engine has lost is delivered again in a minute")
    if 300 <= status < 400:
        return EngineUnreachable("it responds with a redirect, which is not followed: set the final URL in its target")
    if status in (502, 503, 504):
        return EngineUnreachable(f"it responds with status {status}")
    return engine_error(status, content, retry_after, served, requested)


async def _events(
    response: httpcore2.Response, served: str, question: Question, client: EngineClient
) -> AsyncIterator[bytes]:
    """The events of the engine, each as soon as it is complete; a stream that breaks ends with an error event.

    Closing the iterator closes the connection, and the engine then ends the generation.
    """
    translator = EventTranslator(served, question.model)
    problem = "it ended the stream without its last event"
    kind: type[TuneryError] = EngineFailed
    try:
        async for chunk in response.aiter_stream():
            events = [
                await client.parse(question.project_id, len(event), translator.translate, event)
                for event in translator.add(chunk)
            ]
            if events:
                yield b"".join(events)
    except NETWORK_ERRORS as error:
        problem = away_text(error, client.timeout_seconds)
    except ValueError as error:
        problem, kind = str(error), EngineUnavailable
    finally:
        await response.aclose()
    if not translator.is_complete:
        log.warning("engine ended a stream", reason=problem)
        yield event_of(kind(f"The engine stopped in the middle of its answer: {problem}. Send the request again."))


def _renamed(content: bytes, served: str, requested: str) -> bytes:
    """Raises EngineUnreachable."""
    try:
        value = engine_json(content)
    except ValueError as error:
        raise EngineUnreachable(f"it responded with something that is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise EngineUnreachable("it responded with JSON that is no object")
    if served == requested or "model" not in value:
        return content
    return to_json(value | {"model": requested})


def _servers(target: ServingTarget, served: ServedModel, encryption_keys: Sequence[str]) -> list[EngineServer]:
    credentials, problem = {}, None
    try:
        if target.credentials:
            credentials = decrypt(encryption_keys, target.credentials)
    except NoSecretKey as error:
        problem = str(error)
    name = target.destination.get("base_model") if served.is_base else target.served_model
    return [
        EngineServer(target.name, url, name, credentials.get("api_key"), problem) for url in target.destination["urls"]
    ]
