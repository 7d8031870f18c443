from __future__ import annotations

from typing import Any

import pytest

from app.domain.jobs.spec import EarlyStopping, Hyperparameters
from app.errors import BadRequest
from tests.jobs.test_resolve import hyper, refusal, spec_of
from tests.sentences import Reviewed

FILE = {"validation_file": "file-1"}
AT = "method.supervised.hyperparameters"


def hyperparameters_of(**values: Any) -> Hyperparameters:
    return spec_of(**FILE, **hyper(**values)).hyperparameters


class TestMeasuring:
    @pytest.mark.parametrize(
        "values",
        [{}, {"early_stopping": False}, {"eval_steps": None}, {"eval_steps": "auto", "early_stopping": "auto"}],
    )
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

    def test_either_can_be_requested_without_the_other(self) -> None:
        assert not hyperparameters_of(early_stopping=True, promote_best=False).promote_best
        assert hyperparameters_of(promote_best=True).promote_best
        assert hyperparameters_of(load_best_model_at_end=True).promote_best
        assert hyperparameters_of(eval_steps=50).eval_steps == 50

    def test_a_bad_value_is_refused_by_name(self, reviewed: Reviewed) -> None:
        refused: list[tuple[str, Any]] = [
            ("eval_steps", {"eval_steps": 0}),
            ("early_stopping", {"early_stopping": 3}),
            ("early_stopping", {"early_stopping": "yes"}),
            ("early_stopping.patience", {"early_stopping": {"patience": 0}}),
            ("early_stopping.patience", {"early_stopping": {"patience": True}}),
            ("early_stopping.patience", {"early_stopping": {"patience": "3"}}),
            ("early_stopping.threshold", {"early_stopping": {"threshold": -1}}),
            ("early_stopping.threshold", {"early_stopping": {"threshold": 1e308}}),
            ("early_stopping.patients", {"early_stopping": {"patients": 1}}),
            ("promote_best", {"promote_best": "yes"}),
            ("load_best_model_at_end", {"promote_best": True, "load_best_model_at_end": False}),
        ]
        for param, values in refused:
            error = refusal(**FILE, **hyper(**values))
            assert error.param == f"{AT}.{param}"
            reviewed(error.message)

    @pytest.mark.parametrize("values", [{"eval_steps": 5}, {"early_stopping": True}, {"promote_best": True}])
    def test_each_needs_a_validation_file(self, values: dict[str, Any]) -> None:
        error = refusal(**hyper(**values))
        assert isinstance(error, BadRequest)
        assert error.param == f"{AT}.{next(iter(values))}"
        assert "needs a validation_file" in error.message
