"""Grade all answers: ask the reference if there is one, then score every answer with every grader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from app.domain.evaluations.graders import EvaluationSettings, ScoreModel
from app.domain.evaluations.rows import EvaluationRow
from app.settings import Settings
from worker.evaluations.chat_endpoint import ChatEndpoint
from worker.evaluations.endpoint_graders import ReferenceAnswer, ask_reference, ask_scores, recorded_answers
from worker.evaluations.inputs import EvaluationInputs
from worker.evaluations.scoring import Scored, score
from worker.evaluations.summarize import NO_ANSWER, REFERENCE, ModelAnswer, Outcome


def grade(
    settings: Settings,
    evaluation: EvaluationSettings,
    inputs: EvaluationInputs,
    answers: Mapping[str, Sequence[ModelAnswer]],
    precision: str,
    device: str,
    seconds: float,
    wait: Callable[[float], None],
) -> Outcome:
    """`answers` are those of base and adapter. `wait` waits between retries, and raises if the work has to end."""
    rows = inputs.rows
    with ExitStack() as stack:
        endpoints = _Endpoints(settings, wait, stack)
        by_model = dict(answers)
        if evaluation.reference is not None:
            by_model[REFERENCE] = [_as_answer(each) for each in _reference_answers(evaluation, rows, endpoints)]
        scores: dict[str, dict[str, list[Scored]]] = {}
        for grader in evaluation.graders:
            wait(0.0)
            if isinstance(grader, ScoreModel):
                scores[grader.name] = _model_scores(grader, rows, by_model, endpoints)
            else:
                scores[grader.name] = {
                    model: [
                        score(grader, row, answer.text) if answer.text is not None else Scored(None, NO_ANSWER)
                        for row, answer in zip(rows, by_model[model], strict=True)
                    ]
                    for model in by_model
                }
    return Outcome(rows, inputs.rows_in_file, by_model, scores, precision, device, seconds)


def reference_name(evaluation: EvaluationSettings) -> str | None:
    """The name of the reference in texts."""
    reference = evaluation.reference
    if reference is None:
        return None
    return reference.model or f"recorded answers in {reference.field}"


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
) -> list[ReferenceAnswer]:
    reference = evaluation.reference
    assert reference is not None
    if reference.field is not None:
        return recorded_answers(rows, reference.field)
    assert reference.model is not None
    endpoint = endpoints.get(reference.endpoint)
    if isinstance(endpoint, str):
        return [ReferenceAnswer(None, error=endpoint)] * len(rows)
    return ask_reference(endpoint, reference.model, rows, evaluation.max_new_tokens)


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


def _as_answer(answer: ReferenceAnswer) -> ModelAnswer:
    return ModelAnswer(answer.text, answer.tokens, error=answer.error)
