"""Ask the endpoints of an evaluation: the reference for its answers, the models of `score_model` for scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from app.domain.evaluations.graders import EvaluationSettings, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.domain.evaluations.spec import ModelAnswer, Scored
from app.settings import Settings
from worker.evaluations.chat_endpoint import ChatEndpoint
from worker.evaluations.endpoint_graders import ask_reference, ask_scores, recorded_answers

REFERENCE = "reference"


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
        endpoints = _Endpoints(settings, wait, stack)
        by_model = dict(answers)
        if evaluation.reference is not None:
            by_model[REFERENCE] = _reference_answers(evaluation, rows, endpoints)
        scores = {
            grader.name: _model_scores(grader, rows, by_model, endpoints)
            for grader in evaluation.graders
            if isinstance(grader, ScoreModel)
        }
    return by_model, scores


class _Endpoints:
    """The clients of the endpoints, each created when it is first used."""

    def __init__(self, settings: Settings, wait: Callable[[float], None], stack: ExitStack) -> None:
        self._settings = settings
        self._wait = wait
        self._stack = stack
        self._clients: dict[str, ChatEndpoint] = {}

    def get(self, name: str | None) -> ChatEndpoint | str:
        """The client, or the reason why there is none: the workers' settings may differ from the API's."""
        named = self._settings.endpoints
        if name is None and len(named) == 1:
            (name,) = named
        if name is None or name not in named:
            return f"the endpoint {name or '(default)'} is not configured on this worker (TUNERY_ENDPOINTS)"
        if name not in self._clients:
            self._clients[name] = ChatEndpoint(name, named[name], self._wait)
            self._stack.callback(self._clients[name].close)
        return self._clients[name]


def _reference_answers(
    evaluation: EvaluationSettings, rows: Sequence[EvaluationRow], endpoints: _Endpoints
) -> list[ModelAnswer]:
    reference = evaluation.reference
    assert reference is not None
    if reference.field is not None:
        return recorded_answers(rows, reference.field)
    endpoint = endpoints.get(reference.endpoint)
    if isinstance(endpoint, str):
        return [ModelAnswer(None, error=endpoint)] * len(rows)
    return ask_reference(endpoint, evaluation, rows)


def _model_scores(
    grader: ScoreModel,
    rows: Sequence[EvaluationRow],
    by_model: Mapping[str, Sequence[ModelAnswer]],
    endpoints: _Endpoints,
) -> dict[str, list[Scored]]:
    endpoint = endpoints.get(grader.endpoint)
    if isinstance(endpoint, str):
        return {model: [Scored(None, endpoint)] * len(rows) for model in by_model}
    return {
        model: ask_scores(endpoint, grader, [(row, each.text) for row, each in zip(rows, answers, strict=True)])
        for model, answers in by_model.items()
    }
