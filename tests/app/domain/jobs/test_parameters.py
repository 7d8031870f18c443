from __future__ import annotations

from typing import Any

import pytest

from app.domain.jobs.spec import EarlyStopping, Hyperparameters
from app.errors import BadRequest
from tests.app.domain.jobs.test_resolve import hyper, refusal, spec_of

FILE = {"validation_file": "file-1"}
AT = "method.supervised.hyperparameters"


def hyperparameters_of(**values: Any) -> Hyperparameters:
    return spec_of(**FILE, **hyper(**values)).hyperparameters


class TestMeasuring:
    @pytest.mark.parametrize("values", [{}, {"eval_steps": None}, {"eval_steps": "auto", "early_stopping": "auto"}])
    def test_the_default_measures_each_epoch_and_keeps_the_last_adapter(self, values: dict[str, Any]) -> None:
        hyperparameters = hyperparameters_of(**values)
        assert (hyperparameters.eval_steps, hyperparameters.early_stopping, hyperparameters.promote_best) == (
            None,
            None,
            False,
        )

    @pytest.mark.parametrize(
        ("asked", "patience", "threshold"),
        [(True, 3, 0.0), ({}, 3, 0.0), ({"patience": 5}, 5, 0.0), ({"patience": 1, "threshold": 0.02}, 1, 0.02)],
    )
    def test_early_stopping_promotes_the_best(self, asked: Any, patience: int, threshold: float) -> None:
        hyperparameters = hyperparameters_of(early_stopping=asked)
        assert hyperparameters.early_stopping == EarlyStopping(patience=patience, threshold=threshold)
        assert hyperparameters.promote_best

    def test_false_is_no_early_stopping(self) -> None:
        assert hyperparameters_of(early_stopping=False).early_stopping is None

    def test_either_can_be_requested_without_the_other(self) -> None:
        assert not hyperparameters_of(early_stopping=True, promote_best=False).promote_best
        assert hyperparameters_of(promote_best=True).promote_best
        assert hyperparameters_of(load_best_model_at_end=True).promote_best
        assert hyperparameters_of(eval_steps=50).eval_steps == 50

    @pytest.mark.parametrize(
        ("values", "param", "said"),
        [
            ({"eval_steps": 0}, "eval_steps", "whole number from 1"),
            ({"early_stopping": 3}, "early_stopping", "3 is not true, false or"),
            ({"early_stopping": "yes"}, "early_stopping", '"yes" is not true'),
            ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "patience: must be at least 1, not 0"),
            ({"early_stopping": {"patience": True}}, "early_stopping.patience", "must be a whole number, not true"),
            ({"early_stopping": {"patience": "3"}}, "early_stopping.patience", 'must be a whole number, not "3"'),
            ({"early_stopping": {"threshold": -1}}, "early_stopping.threshold", "must be at least 0, not -1"),
            ({"early_stopping": {"threshold": 1e308}}, "early_stopping", "1e+308 is not a number from 0 to 100"),
            ({"early_stopping": {"patients": 1}}, "early_stopping.patients", "known here: patience, threshold"),
            ({"promote_best": "yes"}, "promote_best", "not true or false"),
            ({"promote_best": True, "load_best_model_at_end": False}, "load_best_model_at_end", "contradicts"),
        ],
    )
    def test_bad_values_are_refused_by_name(self, values: dict[str, Any], param: str, said: str) -> None:
        error = refusal(**FILE, **hyper(**values))
        assert error.param == f"{AT}.{param}"
        assert said in error.message

    @pytest.mark.parametrize("values", [{"eval_steps": 5}, {"early_stopping": True}, {"promote_best": True}])
    def test_each_needs_a_validation_file(self, values: dict[str, Any]) -> None:
        error = refusal(**hyper(**values))
        assert isinstance(error, BadRequest)
        assert error.param == f"{AT}.{next(iter(values))}"
        assert "needs a validation_file" in error.message

    def test_sample_prompts_are_kept_as_they_are(self) -> None:
        assert spec_of().sample_prompts == ()
        assert spec_of(sample_prompts=["hello", "bye"]).sample_prompts == ("hello", "bye")
