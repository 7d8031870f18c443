"""What only an endpoint can do: the answers of the reference model, and the scores of `score_model`, by an
OpenAI-compatible endpoint that the operator has named, with retries for what may pass.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import httpx2
from anyio import fail_after
from anyio.from_thread import start_blocking_portal

from app.domain.evaluations.graders import EvaluationSettings, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import ModelAnswer, Scored
from app.domain.evaluations.templates import MAX_RENDERED_BYTES, MissingField, TextRefused, render
from app.domain.webhooks import parse_retry_after
from app.settings import Endpoint, Settings

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 2.0  # doubled with each attempt: the pauses outlast a restart of the endpoint, a minute
RETRIED = (408, 409, 429)  # and every status from 500 on
MAX_PAUSE_SECONDS = 60.0
QUOTED_CHARACTERS = 200

Wait = Callable[[float], None]  # waits; raises if the work has to end
TOOL_CALLS = "recorded_tool_calls"  # of a row, beside a recorded answer without a text
MAX_FAILURES = 5  # in a row: then the endpoint gets no more requests
INSTRUCTION = (
    'Answer with one JSON object and nothing else: {{"steps": [{{"description": "...", "conclusion": "..."}}], '
    '"result": NUMBER}}. The result is a number from {low:g} to {high:g}.'
)

Item = TypeVar("Item")
Result = TypeVar("Result")
REFERENCE = "reference"


class EndpointError(Exception):
    """The endpoint gave no usable answer; the message says what it did instead."""


class NoTextError(EndpointError):
    """The endpoint works, and answered with something else than a text."""


class ChatEndpoint:
    """A client for `chat/completions` of one endpoint. Threads may share it."""

    def __init__(self, name: str, endpoint: Endpoint, wait: Wait) -> None:
        self.name = name
        self.concurrency = endpoint.concurrency
        self._wait = wait
        self._timeout_seconds = endpoint.timeout_seconds
        key = endpoint.api_key.get_secret_value()
        self._stack = ExitStack()
        # An event loop, in which a request can be ended: the timeouts of a client begin anew with every byte.
        self._portal = self._stack.enter_context(start_blocking_portal())
        client = httpx2.AsyncClient(
            base_url=endpoint.base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,
        )
        self._client = self._stack.enter_context(self._portal.wrap_async_context_manager(client))

    def close(self) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raise what `wait` raises if the work has to end."""
        self._wait(0.0)

    def answer(self, model: str, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> tuple[str, int | None]:
        """The text of the answer and its tokens, if the endpoint reports them. Raises EndpointError."""
        body = {"model": model, "messages": list(messages), **parameters}
        problem = ""
        for attempt in range(ATTEMPTS):
            try:
                response = self._portal.call(self._post, body)
            except TimeoutError:
                problem, pause = "did not answer in time", _pause(attempt, None)
            except httpx2.HTTPError as error:
                problem, pause = f"could not be reached ({error or type(error).__name__})", _pause(attempt, None)
            else:
                if response.status_code < 400:
                    return self._parse(response)
                problem = f"answered {response.status_code}: {_error_text(response)}"
                if response.status_code not in RETRIED and response.status_code < 500:
                    raise EndpointError(f"The endpoint {self.name} {problem}")
                pause = _pause(attempt, response)
            if attempt + 1 < ATTEMPTS:
                self._wait(pause)
        raise EndpointError(f"The endpoint {self.name} {problem} ({ATTEMPTS} attempts)")

    async def _post(self, body: Mapping[str, Any]) -> httpx2.Response:
        """The whole response. Raises httpx2.HTTPError, and TimeoutError."""
        with fail_after(self._timeout_seconds):
            return await self._client.post("chat/completions", json=body)

    def _parse(self, response: httpx2.Response) -> tuple[str, int | None]:
        try:
            body = response.json()
            message = body["choices"][0]["message"]
            text, calls = message["content"], message.get("tool_calls")
            tokens = (body.get("usage") or {}).get("completion_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            seen = response.text[:QUOTED_CHARACTERS]
            raise EndpointError(f"The endpoint {self.name} answered in another shape: {seen}") from None
        if text is not None and not isinstance(text, str):
            raise EndpointError(f"The endpoint {self.name} answered with a content that is no text")
        if calls and not text:
            raise NoTextError(f"The endpoint {self.name} answered with calls of tools and no text to compare")
        return text or "", tokens if isinstance(tokens, int) else None


def _pause(attempt: int, response: httpx2.Response | None) -> float:
    """Seconds until the next attempt: what the endpoint asks for, else 2, 4, 8, ... with jitter."""
    pause = None
    if response is not None:
        headers = response.headers
        pause = parse_retry_after(headers.get("retry-after"), headers.get("date"), datetime.now(UTC))
    if pause is None:
        pause = FIRST_PAUSE_SECONDS * 2.0**attempt * random.uniform(1.0, 1.25)
    return min(MAX_PAUSE_SECONDS, max(0.0, pause))


def _error_text(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:QUOTED_CHARACTERS]
    except (ValueError, LookupError, TypeError):
        return response.text[:QUOTED_CHARACTERS]


def ask_reference(
    endpoint: ChatEndpoint | str, evaluation: EvaluationSettings, rows: Sequence[EvaluationRow]
) -> list[ModelAnswer]:
    """The answer of the evaluation's reference model to each row. A text as `endpoint` says why there is none."""
    model = (evaluation.reference and evaluation.reference.model) or ""

    def ask(endpoint: ChatEndpoint, row: EvaluationRow) -> ModelAnswer:
        max_tokens = evaluation.max_new_tokens
        tools = {"tools": list(row.tools)} if row.tools else {}
        try:
            text, tokens = endpoint.answer(model, _messages(row), temperature=0, max_tokens=max_tokens, **tools)
        except NoTextError as error:
            return ModelAnswer(None, error=str(error))
        return ModelAnswer(text.strip(), tokens)

    return _ask_all(endpoint, rows, ask, lambda why: ModelAnswer(None, error=why))


def ask_scores(
    endpoint: ChatEndpoint | str, grader: ScoreModel, pairs: Sequence[tuple[EvaluationRow, str | None]]
) -> list[Scored]:
    """The score of each (row, answer) by the grader's model."""

    def ask(endpoint: ChatEndpoint, pair: tuple[EvaluationRow, str | None]) -> Scored:
        row, output = pair
        if output is None:
            return Scored(None, "there is no answer to score")
        try:
            messages = [
                {"role": message.role, "content": render(message.content, row.item, output)} for message in grader.input
            ]
        except MissingField as error:  # of the answer: the fields of the rows were checked before
            return Scored(grader.range[0], str(error))
        except TextRefused as error:
            return Scored(None, str(error))
        if sum(len(message["content"].encode(errors="replace")) for message in messages) > MAX_RENDERED_BYTES:
            return Scored(None, f"the messages have more than {MAX_RENDERED_BYTES:,} bytes together")
        low, high = grader.range
        messages.append({"role": "system", "content": INSTRUCTION.format(low=low, high=high)})
        text, _ = endpoint.answer(grader.model, messages, **_parameters(grader))
        value = parse_score(text)
        if value is None:
            raise EndpointError(f"The model {grader.model} answered without a number: {text[:200]}")
        return Scored(min(high, max(low, value)))

    return _ask_all(endpoint, pairs, ask, lambda why: Scored(None, why))


def parse_score(text: str) -> float | None:
    """The number in `{"result": 0.5}`, or a text that is only a number; None for anything else."""
    start, end = text.find("{"), text.rfind("}")
    try:
        value: Any = json.loads(text[start : end + 1])["result"] if 0 <= start < end else float(text)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return number if math.isfinite(number) else None


def _messages(row: EvaluationRow) -> list[dict[str, Any]]:
    if row.prompt is not None:
        return [{"role": "user", "content": row.prompt}]
    return [{key: value for key, value in message.items() if key != "weight"} for message in row.messages]


def _parameters(grader: ScoreModel) -> dict[str, Any]:
    given = grader.sampling_params.model_dump(exclude_none=True) if grader.sampling_params else {}
    if (tokens := given.pop("max_completions_tokens", None)) is not None:
        given["max_completion_tokens"] = tokens
    return {"temperature": 0, **given} if "reasoning_effort" not in given else given


def _ask_all(
    endpoint: ChatEndpoint | str,
    items: Iterable[Item],
    ask: Callable[[ChatEndpoint, Item], Result],
    failed: Callable[[str], Result],
) -> list[Result]:
    """Ask for each item, several at once. After MAX_FAILURES failures in a row the rest gets no request.

    Raises what the endpoint's `wait` raises after a cancel or at a shutdown; the other items get no request then.
    """
    if isinstance(endpoint, str):
        return [failed(endpoint) for _ in items]
    lock = threading.Lock()
    failures = 0

    def ask_one(item: Item) -> Result:
        nonlocal failures
        endpoint.check()  # all requests of an evaluation take hours with a slow endpoint
        if failures >= MAX_FAILURES:
            return failed(f"not asked: the endpoint {endpoint.name} failed {MAX_FAILURES} times in a row")
        try:
            result = ask(endpoint, item)
        except EndpointError as error:
            with lock:
                failures += 1
            return failed(str(error))
        with lock:
            failures = 0
        return result

    executor = ThreadPoolExecutor(endpoint.concurrency)
    try:
        return list(executor.map(ask_one, items))
    finally:
        executor.shutdown(cancel_futures=True)


def recorded_answers(rows: Sequence[EvaluationRow], field: str) -> list[ModelAnswer]:
    """The answers that a field of the rows has."""
    return [
        ModelAnswer(None, error="the recorded answer has calls of tools and no text to compare")
        if not (text := str(row.item[field]).strip()) and row.item.get(TOOL_CALLS)
        else ModelAnswer(text)
        for row in rows
    ]


def ask_endpoints(
    settings: Settings,
    evaluation: EvaluationSettings,
    rows: Sequence[EvaluationRow],
    answers: Mapping[str, Sequence[ModelAnswer]],
    wait: Callable[[float], None],
) -> tuple[dict[str, Sequence[ModelAnswer]], dict[str, dict[str, list[Scored]]]]:
    """The answers by model, with those of the reference, and the scores of each `score_model` by model.

    `answers` are those of base and adapter. `wait` waits between retries, and raises if the work has to end.
    """
    with ExitStack() as stack:

        @cache
        def client(name: str | None) -> ChatEndpoint | str:
            """The client, or the reason why there is none: the workers' settings may differ from the API's."""
            named = settings.endpoints
            if name is None and len(named) == 1:
                (name,) = named
            if name is None or name not in named:
                return f"the endpoint {name or '(default)'} is not configured on this worker (TUNERY_ENDPOINTS)"
            return stack.enter_context(closing(ChatEndpoint(name, named[name], wait)))

        by_model = dict(answers)
        if (reference := evaluation.reference) is not None and reference.field is not None:
            by_model[REFERENCE] = recorded_answers(rows, reference.field)
        elif reference is not None:
            by_model[REFERENCE] = ask_reference(client(reference.endpoint), evaluation, rows)
        texts = {model: [answer.text for answer in of_rows] for model, of_rows in by_model.items()}
        scores = {
            grader.name: {
                model: ask_scores(client(grader.endpoint), grader, list(zip(rows, outputs, strict=True)))
                for model, outputs in texts.items()
            }
            for grader in evaluation.graders
            if isinstance(grader, ScoreModel)
        }
    return by_model, scores
