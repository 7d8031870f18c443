"""DPO and KTO in the complete trainer: metrics, validation, resume, refused input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.jobs.events import Command, Metric, Started
from app.domain.jobs.states import ExitCode, Reason
from tests.tiny import make_tiny_dataset, make_tiny_pairs
from tests.trainer.helpers import (
    Trainings,
    assert_same_adapter,
    make_spec,
    run_trainer,
)

BETA = 0.2
STEPS = 6  # two epochs of three
FLOAT32_LORA: dict[str, Any] = {"method": "dpo", "beta": BETA}
KTO: dict[str, Any] = {"method": "kto", "beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.5}


class TestRun:
    def test_a_run_reports_its_metrics(self, tiny: Path, pairs: Path, tmp_path: Path) -> None:
        valid = make_tiny_pairs(tmp_path / "valid.jsonl", 5, seed=9)
        code, log = run_trainer(make_spec(tiny, pairs, validation_file=valid, **FLOAT32_LORA), tmp_path)
        assert code == ExitCode.DONE, log.last
        metrics = log.of(Metric)
        assert [metric.step for metric in metrics] == list(range(1, STEPS + 1))
        assert all(metric.train_mean_token_accuracy is None for metric in metrics)
        assert all(metric.train_reward_accuracy is not None for metric in metrics)
        measured = [metric for metric in metrics if metric.full_valid_loss is not None]
        assert [metric.step for metric in measured] == [3, 6]
        assert all(metric.full_valid_reward_margin is not None for metric in measured)
        assert log.of(Started)[0].examples == 12

    def test_an_interrupted_kto_run_has_the_same_result_to_the_bit(self, train: Trainings, labelled: Path) -> None:
        """Its losses depend on the examples of the step, and its reference on no state."""
        changes = KTO | {"training_file": labelled, "validation_file": labelled, "dropout": 0.1}
        whole = train(**changes)
        first = train(stop_at=(4, Command.DRAIN), **changes)
        second = train(resume_from=first.snapshot, **changes)
        assert_same_adapter(second, whole)
        assert first.losses + second.losses == whole.losses
        for name in ("train_reward_desirable", "train_reward_undesirable", "train_kl", "full_valid_kl"):
            assert any(metric.model_dump().get(name) for metric in whole.of(Metric)), name

    @pytest.mark.parametrize(
        ("method", "expected_text"),
        [("supervised", 'for the method "dpo"'), ("dpo", 'for the method "supervised"')],
    )
    def test_a_file_for_the_other_method_is_refused(
        self, tiny: Path, pairs: Path, tmp_path: Path, method: str, expected_text: str
    ) -> None:
        file = pairs if method == "supervised" else make_tiny_dataset(tmp_path / "chat.jsonl")
        beta = BETA if method == "dpo" else None
        code, log = run_trainer(make_spec(tiny, file, method=method, beta=beta), tmp_path)
        assert (code, log.failure.reason) == (ExitCode.BAD_SPEC, Reason.INVALID_TRAINING_FILE)
        assert expected_text in log.failure.message
