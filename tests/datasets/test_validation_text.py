"""Hostile values for every field of every body: each type of error that they cause has a sentence of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from app.api.schemas.common import Strict
from app.domain.error_text.validation_text import DEFAULT_RULE, LENGTHS, RULES, as_problems, check_shape, error_sentence
from app.domain.evaluations.graders import CreateEvaluation
from app.domain.jobs.create_job import CreateJob, MethodBody
from app.domain.jobs.spec import EarlyStopping
from app.main import create_app
from tests.python_words import python_words
from tests.sentences import Reviewed

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**62, -(2**62), 1.5, -1e308, 1e308, 5e-324, float("nan"), float("inf"), "", " ", "7",
    "true", "null", "\u202e\n\x7f", "🤖" * 3, "x" * 70, "x" * 5_000, [], [None], [True], [1.5], ["x"], [""],
    ["x" * 300] * 3, [[]], [{}], [{"type": "x"}], list(range(300)), ["x"] * 20_000, {}, {"": ""}, {"x": None}, {"x": 1},
    {"x" * 70: "y" * 600},
    {f"k{at}": "v" for at in range(17)}, {"type": 7}, {"anchor": "now", "seconds": 1e9}, {"hyperparameters": [1]},
    {"anchor": "created_at", "seconds": "3600"}, {"anchor": "created_at", "seconds": 1},
)  # fmt: skip


class Rare(BaseModel):
    """As `audio` of an answer in a dataset, and `top_p` of a trial."""

    audio: None = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None


def request_models(model: type[BaseModel] = Strict) -> Iterator[type[BaseModel]]:
    for one in model.__subclasses__():
        yield one
        yield from request_models(one)


def errors_of(model: type[BaseModel]) -> Iterator[ErrorDetails]:
    fields = [field.alias or name for name, field in model.model_fields.items()]
    for body in ({field: value} for field in [*fields, "unknown"] for value in HOSTILE):
        try:
            model.model_validate(body)
        except ValidationError as error:
            yield from error.errors(include_url=False)


@pytest.fixture(scope="module")
def errors() -> list[tuple[type[BaseModel], ErrorDetails]]:
    assert create_app  # which imports every module that has a body
    models = [*request_models(), CreateJob, MethodBody, CreateEvaluation, EarlyStopping, Rare]
    return [(model, error) for model in models for error in errors_of(model)]


class TestSentence:
    def test_the_table_has_exactly_the_seen_types(self, errors: list[tuple[type[BaseModel], ErrorDetails]]) -> None:
        seen = {error["type"] for _, error in errors} - {"missing", "extra_forbidden"}
        of_a_query = {"bool_parsing", "int_parsing", "int_parsing_size", "float_parsing"}  # in test_messages.py
        assert seen | of_a_query == {*RULES, *LENGTHS}

    def test_a_problem_has_json_terms_and_its_field(self, errors: list[tuple[type[BaseModel], ErrorDetails]]) -> None:
        assert len(errors) > 1_000
        for model, error in errors:
            (problem,) = as_problems([error], model.model_fields)
            assert not python_words(problem.message), problem.message
            assert problem.message.isprintable()
            assert len(problem.message) < 700
            assert problem.param
            assert len(problem.param) < 300
            assert problem.message.count('"') % 2 == 0 or '\\"' in problem.message, problem.message

    @pytest.mark.parametrize("value", [0, 2])
    def test_an_exclusive_bound_is_named_with_the_other_one(self, value: int, reviewed: Reviewed) -> None:
        (problem,) = check_shape(Rare, {"top_p": value})[1]
        reviewed(problem.message)

    @pytest.mark.parametrize("kind", ["missing", "frozen_instance", "url_parsing"])
    def test_a_problem_never_repeats_what_pydantic_says(self, kind: str) -> None:
        error = {"type": kind, "msg": "Input should be a Python thing", "input": None}
        assert error_sentence(error) == f"{DEFAULT_RULE}, not null"

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"seed": True}, "seed: must be a whole number, not true"),
            ({"seed": None, "suffix": ["x"]}, 'suffix: must be a string, not ["x"]'),
            ({"seed": -1}, "seed: must be from 0 to 2147483647, not -1"),
            ({"seed": 2**40}, "seed: must be from 0 to 2147483647, not 1099511627776"),
            ({"suffix": "x" * 65}, f'suffix: "{"x" * 60}…" has 65 characters; at most 64 are allowed'),
            ({"suffix": ""}, "suffix: must not be empty"),
            ({"metadata": {f"k{at}": "v" for at in range(17)}}, "metadata: has 17 pairs; at most 16 are allowed"),
            (
                {"metadata": {"k" * 65: "v"}},
                f'metadata: the key "{"k" * 60}…" has 65 characters; at most 64 are allowed',
            ),
            ({"metadata": {"k": None}}, "metadata.k: must be a string, not null"),
            ({"sample_prompts": ["x"] * 5}, "sample_prompts: has 5 items; at most 4 are allowed"),
            ({"integrations": {}}, "integrations: must be an array, not {}"),
            (
                {"trainingType": 7},
                "trainingType: must be one of Azure's training types, Standard, GlobalStandard or DeveloperTier, not 7",
            ),
        ],
    )
    def test_a_problem_has_what_was_seen_and_what_is_allowed(self, body: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError) as caught:
            CreateJob.model_validate({"model": "tiny", "training_file": "file-1"} | body)
        assert [problem.message for problem in as_problems(caught.value.errors(), CreateJob.model_fields)] == [message]


def test_the_types_in_the_table_exist() -> None:
    from pydantic_core import core_schema

    assert {*RULES, *LENGTHS} <= set(get_args(core_schema.ErrorType))
