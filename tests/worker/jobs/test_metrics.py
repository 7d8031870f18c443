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

    def test_the_results_file_of_a_kto_job_has_its_metrics(self) -> None:
        first = metric_data(measured(train_loss=0.5, train_reward_desirable=0.5, train_kl=0.0))
        other = metric_data(measured(train_loss=0.5, train_reward_undesirable=-0.5, train_kl=0.25))
        header, *rows = results_csv([first, other]).decode().splitlines()
        names = [f"{scope}_{name}" for scope in ("train", "full_valid") for name in METHODS["kto"].metrics]
        assert header.endswith(",num_tokens," + ",".join(names))
        assert [row.split(",")[-6:] for row in rows] == [["0.5", "", "0.0", *[""] * 3], ["", "-0.5", "0.25", *[""] * 3]]

    def test_the_results_file_of_a_dpo_job_has_its_metrics_in_the_last_columns(self) -> None:
        pairs = metric_data(measured(train_loss=0.69, train_reward_accuracy=0.5, train_reward_margin=0.1))
        tokens = metric_data(measured(train_loss=0.69, train_mean_token_accuracy=0.5))
        header, row = results_csv([pairs]).decode().splitlines()
        names = "train_reward_accuracy,train_reward_margin,full_valid_reward_accuracy,full_valid_reward_margin"
        assert header.endswith(f",num_tokens,{names}")
        assert row.endswith(",100,0.5,0.1,,")
        assert results_csv([tokens]).decode().splitlines()[0].endswith(",num_tokens")
