"""Trial answers: an idle worker answers small requests to a model that no engine serves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from app.db.fast_reads.pool import AsyncConnections
from app.db.ids import new_id
from app.domain.answers.engine_answers import event_of, to_json
from app.domain.answers.trial import GeneratedToolCall, TokenLogprob, TrialQuestion, TrialRecord, TrialRequest
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest, EngineFailed, EngineUnavailable, ModelNotServed, NotFound, RateLimited, TuneryError
from app.log import get_logger
from app.services.answers.answers import EngineAnswer
from app.trial_queue import QUEUE_UNAVAILABLE, SILENCE_SECONDS, TrialQueue

TEXT_SECONDS = 180.0  # until the next text: before the first one the worker may have to load the base model
RETRY_AFTER_SECONDS = 5.0
INSTEAD = "For serving, deliver the model to an inference engine (`tunery targets create`, `tunery jobs deliver`)."
# An earlier release does not say whether it answers on trial.
ABLE_WORKERS = """
SELECT count(*) AS workers FROM workers
WHERE queue = 'gpu' AND seen_at > clock_timestamp() - interval '60 seconds'
  AND about -> 'models' @> to_jsonb(%(base_model)s::text)
  AND coalesce((about ->> 'slots_per_gpu')::int, 1) = 1 AND coalesce((about ->> 'trial_answers')::boolean, true)
"""

log = get_logger(__name__)


async def ask(
    connections: AsyncConnections, queue: TrialQueue, question: TrialQuestion, request: TrialRequest
) -> EngineAnswer:
    """The answer of an idle worker.

    Raises RateLimited if every slot is busy, ModelNotServed if no worker can answer, and the worker's error.
    """
    base_model = question.model.split(":")[1] if question.model.startswith("ft:") else question.model
    try:
        is_taken = await queue.ask(question, base_model)
    except QUEUE_UNAVAILABLE as error:
        raise EngineUnavailable("The broker does not answer, so no worker can be asked; try again later.") from error
    if not is_taken:
        raise await _refusal(connections, request.model, base_model)
    log.info("trial question", question=question.id)  # with the id of the request; the worker logs the question's
    answer = _AnswerRecords(queue, question, request)
    try:
        first = await answer.next_record()
    except BaseException:
        await answer.give_up()
        raise
    if request.stream:
        return EngineAnswer(None, 200, events=answer.events(first))
    return EngineAnswer(None, 200, to_json(await answer.body(first)))


async def _refusal(connections: AsyncConnections, model: str, base_model: str) -> TuneryError:
    able = await connections.fetch_one(ABLE_WORKERS, {"base_model": base_model})
    if not able.workers:
        return ModelNotServed(
            f"Nothing serves {as_json(model)}: it was not delivered to an inference engine, and no GPU worker runs "
            f"that can answer on trial: one with the base model {as_json(base_model)}, TUNERY_TRIAL_ANSWERS=true and "
            f"TUNERY_SLOTS_PER_GPU=1. {INSTEAD}",
            "model",
        )
    return _busy()


def _busy() -> RateLimited:
    return RateLimited(
        "Every worker trains, answers another trial request, of which each takes one at a time, or waits for another "
        f"project, whose turn it is; try again in {RETRY_AFTER_SECONDS:g} s. {INSTEAD}",
        RETRY_AFTER_SECONDS,
    )


class _AnswerRecords:
    """The records of one answer, as OpenAI's bodies or chunks."""

    def __init__(self, queue: TrialQueue, question: TrialQuestion, request: TrialRequest) -> None:
        self._queue, self._question, self._request = queue, question, request
        self._is_chat = question.messages is not None
        self._created = int(time.time())
        self._is_over = False

    async def give_up(self) -> None:
        """Let the worker stop: the client has the answer, or has disconnected."""
        if not self._is_over:
            self._is_over = True
            with suppress(*QUEUE_UNAVAILABLE):
                await self._queue.give_up(self._question.id)

    async def body(self, record: TrialRecord) -> dict[str, Any]:
        records = [record]
        try:
            while not record.is_last:
                record = await self.next_record()
                records.append(record)
        finally:
            await self.give_up()
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [
            self._choice(index, [each for each in records if each.choice == index]) for index in range(self._question.n)
        ]
        return self._object(kind, choices) | {"usage": _usage(record)}

    def _choice(self, index: int, records: Sequence[TrialRecord]) -> dict[str, Any]:
        text = "".join(record.text for record in records)
        answer = {"message": _message(text, records)} if self._is_chat else {"text": text}
        logprobs = self._logprobs([token for record in records for token in record.tokens])
        return {"index": index, **answer, "logprobs": logprobs, "finish_reason": records[-1].finish_reason}

    async def events(self, record: TrialRecord) -> AsyncIterator[bytes]:
        try:
            for index in range(self._question.n if self._is_chat else 0):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            while True:
                if record.type == "text":
                    delta = _delta(record) if self._is_chat else record.text
                    yield self._chunk(record.choice, delta, logprobs=self._logprobs(record.tokens))
                else:
                    yield self._chunk(record.choice, {} if self._is_chat else "", record.finish_reason)
                if record.is_last:
                    break
                record = await self.next_record()
            if self._request.stream_options and self._request.stream_options.include_usage:
                yield _event(self._object(self._chunk_kind, []) | {"usage": _usage(record)})
            yield b"data: [DONE]\n\n"
        except TuneryError as error:
            yield event_of(error)
        finally:
            await self.give_up()

    async def next_record(self) -> TrialRecord:
        """The next record that is no heartbeat. Raises the worker's error."""
        deadline = time.monotonic() + TEXT_SECONDS
        while time.monotonic() < deadline:
            try:
                record = await self._queue.next_record(self._question.id, SILENCE_SECONDS)
            except QUEUE_UNAVAILABLE as error:
                raise EngineUnavailable("The broker does not answer any more; send the request again.") from error
            if record is None:
                raise EngineFailed("The worker that answered is lost; send the request again.")
            if record.is_last:
                self._is_over = True
            if record.type == "error":
                raise _error_of(record, "messages" if self._is_chat else "prompt")
            if record.type != "alive":
                return record
        raise EngineUnavailable(
            f"The worker generated no text within {TEXT_SECONDS:g} s. If it still loads the model, it continues to do "
            "so; try again in a minute."
        )

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(
        self, index: int, delta: Any, finish_reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, ("delta" if self._is_chat else "text"): delta, "logprobs": logprobs}
        return _event(self._object(self._chunk_kind, [choice | {"finish_reason": finish_reason}]))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """The tokens in OpenAI's shape; null if the request does not ask for them."""
        if self._question.top_logprobs is None:
            return None
        if not self._is_chat:
            return {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.logprob for token in tokens],
                "top_logprobs": [dict(token.top) for token in tokens],
                "text_offset": [token.start for token in tokens],
            }
        content = [
            _chat_token(token.text, token.logprob) | {"top_logprobs": [_chat_token(*each) for each in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        id = self._question.id if self._is_chat else self._question.id.replace("chatcmpl", "cmpl", 1)
        return {
            "id": id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
        }


def new_question_id() -> str:
    return new_id("chatcmpl", "-")


def _error_of(record: TrialRecord, param: str) -> TuneryError:
    """`param` is the field with the prompt."""
    match record.reason:
        case "busy":
            return _busy()
        case "context_length_exceeded":
            return BadRequest(record.message, param, "context_length_exceeded")
        case "invalid_value":
            return BadRequest(record.message, record.param or param)
        case "invalid_tools":
            return BadRequest(record.message, "tools")
        case "model_not_found":
            return NotFound(record.message, "model", "model_not_found")
    return EngineFailed(record.message)


def _message(text: str, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The message of a whole answer; its content is null if it has calls and no text, as OpenAI's."""
    calls = [_tool_call(call) for record in records for call in record.tool_calls]
    message = {"role": "assistant", "content": None if calls and not text else text}
    if reasoning := "".join(record.reasoning for record in records):
        message["reasoning_content"] = reasoning
    return message | ({"tool_calls": calls} if calls else {})


def _delta(record: TrialRecord) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": record.text} if record.text or not record.tool_calls else {}
    if record.reasoning:
        delta["reasoning_content"] = record.reasoning
    if record.tool_calls:
        delta["tool_calls"] = [{"index": at} | _tool_call(call) for at, call in enumerate(record.tool_calls)]
    return delta


def _tool_call(call: GeneratedToolCall) -> dict[str, Any]:
    return {"id": new_id("call", "_"), "type": "function", "function": call.model_dump()}


def _chat_token(text: str, logprob: float) -> dict[str, Any]:
    """The bytes of a token that is a part of a character are not known."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _usage(record: TrialRecord) -> dict[str, int]:
    total = record.prompt_tokens + record.completion_tokens
    return {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens, "total_tokens": total}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"
