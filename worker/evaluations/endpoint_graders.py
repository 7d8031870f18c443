"""What only an endpoint can do: the answers of the reference model, and the scores of `score_model`."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from app.domain.evaluations.graders import EvaluationSettings, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import ModelAnswer, Scored
from app.domain.evaluations.templates import MAX_RENDERED_BYTES, MissingField, TextRefused, render
from worker.evaluations.chat_endpoint import ChatEndpoint, EndpointError, NoTextError

TOOL_CALLS = "recorded_tool_calls"  # of a row, beside a recorded answer without a text
MAX_FAILURES = 5  # in a row: then the endpoint gets no more requests
INSTRUCTION = (
    'Answer with one JSON object and nothing else: {{"steps": [{{"description": "...", "conclusion": "..."}}], '
    '"result": NUMBER}}. The result is a number from {low:g} to {high:g}.'
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_reference(
    endpoint: ChatEndpoint, evaluation: EvaluationSettings, rows: Sequence[EvaluationRow]
) -> list[ModelAnswer]:
    """The answer of the evaluation's reference model to each row."""
    reference, max_tokens = evaluation.reference, evaluation.max_new_tokens
    assert reference is not None
    assert reference.model is not None
    model = reference.model

    def ask(row: EvaluationRow) -> ModelAnswer:
        tools = {"tools": list(row.tools)} if row.tools else {}
        try:
            text, tokens = endpoint.answer(model, _messages(row), temperature=0, max_tokens=max_tokens, **tools)
        except NoTextError as error:
            return ModelAnswer(None, error=str(error))
        return ModelAnswer(text.strip(), tokens)

    return _ask_all(endpoint, rows, ask, lambda why: ModelAnswer(None, error=why))


def ask_scores(
    endpoint: ChatEndpoint, grader: ScoreModel, pairs: Sequence[tuple[EvaluationRow, str | None]]
) -> list[Scored]:
    """The score of each (row, answer) by the grader's model."""

    def ask(pair: tuple[EvaluationRow, str | None]) -> Scored:
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
    endpoint: ChatEndpoint,
    items: Iterable[Item],
    ask: Callable[[Item], Result],
    failed: Callable[[str], Result],
) -> list[Result]:
    """Ask for each item, several at once. After MAX_FAILURES failures in a row the rest gets no request.

    Raises what the endpoint's `wait` raises after a cancel or at a shutdown; the other items get no request then.
    """
    lock = threading.Lock()
    failures = 0

    def ask_one(item: Item) -> Result:
        nonlocal failures
        endpoint.check()  # all requests of an evaluation take hours with a slow endpoint
        if failures >= MAX_FAILURES:
            return failed(f"not asked: the endpoint {endpoint.name} failed {MAX_FAILURES} times in a row")
        try:
            result = ask(item)
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
    return [_recorded_answer(row, str(row.item[field]).strip()) for row in rows]


def _recorded_answer(row: EvaluationRow, text: str) -> ModelAnswer:
    if not text and row.item.get(TOOL_CALLS):
        return ModelAnswer(None, error="the recorded answer has calls of tools and no text to compare")
    return ModelAnswer(text)
