"""POST /v1/chat/completions and /v1/completions: answers of a model, by an inference engine or on trial by a worker.

A request holds no database connection while it waits for the engine.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.auth import Caller, CallerDep
from app.api.dependencies import AppState, AppStateDep
from app.api.middleware.request_log import record_of
from app.api.openapi import responses
from app.api.schemas.answers import CreateChatCompletion, CreateCompletion
from app.api.schemas.common import parse_body
from app.api.transport.disconnect import CancelledStream, run_until_disconnect
from app.api.transport.json_body import AnswerBodyDep, RequestBody, parse_json_object
from app.domain.answers.trial import TrialQuestion, TrialRequest, check_supported, question_of
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest
from app.services.answers import answers, trial
from app.services.answers.answers import EVENT_STREAM, EngineAnswer, Question

ANSWERED_BY = "X-Tunery-Answered-By"
TRIAL = "trial; for trying a model and not for serving it"
CHAT_PATH = "/chat/completions"
CHAT_FIELDS = frozenset(TrialRequest.model_fields) - {"prompt"}
OF_CHATS = {
    "messages", "max_completion_tokens", "top_logprobs", "response_format",
    "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs",
}  # fmt: skip
FIELDS = frozenset(TrialRequest.model_fields) - OF_CHATS
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would buffer the events
ChatBody = Annotated[AnswerBodyDep, RequestBody(CreateChatCompletion)]
PromptBody = Annotated[AnswerBodyDep, RequestBody(CreateCompletion)]

router = APIRouter(prefix="/v1", tags=["Answers"])


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=responses.CHAT_ANSWER,
    summary="Ask a model in a chat",
)
async def create_chat_completion(
    request: Request, body: ChatBody, caller: CallerDep, app_state: AppStateDep
) -> Response:
    """The request goes to an engine that the model was delivered to, with every field that the engine takes.

    Without one, an idle worker may answer on trial: one request at a time, at most 256 new tokens.
    """
    return await _answer(request, app_state, caller, body)


@router.post(
    "/completions",
    response_class=Response,
    responses=responses.COMPLETION_ANSWER,
    summary="Let a model continue a text",
)
async def create_completion(request: Request, body: PromptBody, caller: CallerDep, app_state: AppStateDep) -> Response:
    """The same for a prompt without a chat template."""
    return await _answer(request, app_state, caller, body)


async def _answer(request: Request, app_state: AppState, caller: Caller, data: bytes) -> Response:
    body = await app_state.io_pools.parse(caller.key_id, len(data), parse_json_object, data)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        problem = "you must provide model" if model is None else f"model: must be a name, not {as_json(model, 80)}"
        raise BadRequest(problem, "model", "missing_required_parameter" if model is None else "invalid_type")
    question = Question(caller.project_id, request.url.path, body, record_of(request.scope).request_id)
    answer = await run_until_disconnect(request, _ask(app_state, question, caller.key_id, len(data)))
    headers = {ANSWERED_BY: TRIAL if answer.target is None else "engine"}
    if answer.events is not None:
        return CancelledStream(answer.events, answer.status, headers | STREAM_HEADERS, media_type=EVENT_STREAM)
    return Response(answer.body, answer.status, headers, media_type="application/json")


async def _ask(app_state: AppState, question: Question, key_id: str, size_bytes: int) -> EngineAnswer:
    settings = app_state.settings
    served = await answers.find_model(app_state.connections, question.project_id, question.model)
    if question.path.endswith(CHAT_PATH):
        question = answers.with_arguments(question, served)
    if servers := answers.servers_of(served, settings.encryption_keys):
        return await answers.ask(app_state.engine_client, servers, question)
    if not settings.trial_answers:
        raise answers.not_served_error(question.model)
    asked = await app_state.io_pools.parse(key_id, size_bytes, _trial_question, question, served.name)
    return await trial.ask(app_state.connections, app_state.trial_queue, *asked)


def _trial_question(question: Question, model: str) -> tuple[TrialQuestion, TrialRequest]:
    is_chat = question.path.endswith(CHAT_PATH)
    request = parse_body(TrialRequest, check_supported(question.body, CHAT_FIELDS if is_chat else FIELDS))
    return question_of(request, trial.new_question_id(), question.project_id, model, is_chat), request
