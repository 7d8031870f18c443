"""Metrics of methods in the worker: events and results."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.jobs.events import Metric, results_csv
from app.domain.methods import METHODS
from worker.jobs.record_writer import metric_data


def measured(**values: Any) -> Metric:
    return Metric(
        run_id="a",
        step=1,
        total_steps=2,
        epoch=0.5,
        learning_rate=1e-4,
        grad_norm=0.5,
        trained_tokens=100,
        labelled_tokens=30,
        tokens_per_second=9.0,
        eta_seconds=1.0,
        **values,
    )


class TestMetrics:
    def test_a_metrics_event_has_the_metrics_of_pairs(self) -> None:
        data = metric_data(measured(train_loss=0.69, train_reward_accuracy=0.5, train_reward_margin=0.1))
        assert (data["train_reward_accuracy"], data["train_reward_margin"]) == (0.5, 0.1)
        assert data["train_mean_token_accuracy"] is None
        assert "valid_reward_margin" not in data

    def test_a_metric_of_no_method_is_refused(self) -> None:
        for name, value in (("train_reward", 0.5), ("train_kl", "high")):
            with pytest.raises(ValidationError):
                measured(train_loss=0.69, **{name: value})

    @pytest.mark.parametrize(
        ("method", "metrics", "values"),
        [
            ("supervised", {"train_mean_token_accuracy": 0.5}, None),
            ("dpo", {"train_reward_accuracy": 0.5, "train_reward_margin": 0.1}, "0.5,0.1,,"),
            ("kto", {"train_reward_undesirable": -0.5, "train_kl": 0.0}, ",-0.5,0.0,,,"),
        ],
    )
    def test_the_results_file_has_the_metrics_of_the_method_in_the_last_columns(
        self, method: str, metrics: dict[str, float], values: str | None
    ) -> None:
        header, row = results_csv([metric_data(measured(train_loss=0.69, **metrics))]).decode().splitlines()
        names = [f"{scope}_{name}" for scope in ("train", "full_valid") for name in METHODS[method].metrics]
        assert header.endswith(",num_tokens," + ",".join(names) if values else ",num_tokens")
        assert row.endswith(f",100,{values}" if values else ",100")
