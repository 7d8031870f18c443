"""Between steps: when the validation file is evaluated, the effects of it, and what must stay unchanged."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.jobs.events import CheckpointSaved, Message, Metric
from app.system import artifact_directory
from app.system.tokenizer_files import load_renderer
from tests.sentences import Reviewed
from tests.trainer.helpers import (
    Attempt,
    RecordLog,
    Trainings,
    assert_same_adapter,
    dataset_of,
    load_tiny_base,
    make_one_step,
    no_keepalive,
    prepare,
    save_adapter,
    write_answers,
)
from worker.trainer.checkpoint.verify import verify_adapter
from worker.trainer.data.batch import pack_batches
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.metrics import BatchLosses, StepMetrics
from worker.trainer.training import shared_work
from worker.trainer.training.run import make_objective
from worker.trainer.training.state import Run
from worker.trainer.validation import evaluate as sampling
from worker.trainer.validation.evaluate import evaluate, sample_answers


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The results of the next validations, in order; a test fills the list."""
    losses: list[float] = []
    monkeypatch.setattr(shared_work, "evaluate", lambda *_: of_loss(losses.pop(0)))
    return losses


def of_loss(loss: float) -> StepMetrics:
    """Return the metrics of a validation with one labelled token."""
    validation = StepMetrics(torch.device("cpu"), ())
    (batch,) = pack_batches(dataset_of(([1, 2], [1])), [0], 2)
    validation.add(BatchLosses(batch, torch.tensor([loss], dtype=torch.float64), {}))
    return validation


def checkpoints(log: RecordLog) -> list[tuple[int, bool]]:
    return [(record.step, record.final) for record in log.of(CheckpointSaved)]


@pytest.mark.parametrize(("changes", "steps"), [({}, [3, 6]), ({"eval_steps": 2, "max_steps": 5}, [2, 4, 5])])
def test_the_validation_file_is_evaluated_every_eval_steps_else_each_epoch_and_at_the_end(
    train: Trainings, scripted: list[float], changes: dict[str, Any], steps: list[int]
) -> None:
    scripted += [1.0] * len(steps)
    log = train(validation_file=train.training_file, **changes)
    assert [metric.step for metric in log.of(Metric) if metric.full_valid_loss is not None] == steps
    assert checkpoints(log) == [(3, False), (log.last.step, True)]  # validation adds none


@pytest.fixture
def validated(train: Trainings, scripted: list[float]) -> Callable[..., Attempt]:
    """`validated(losses, **changes)`: train with a validation after each step, which has the next of these losses."""

    def run(losses: list[float], **changes: Any) -> Attempt:
        scripted[:] = losses
        return train(**{"validation_file": train.training_file, "eval_steps": 1} | changes)

    return run


class TestEarlyStopping:
    def test_the_run_ends_at_that_step_with_an_event(
        self, validated: Callable[..., Attempt], reviewed: Reviewed
    ) -> None:
        log = validated([3.0, 2.0, 2.1, 2.2, 9.0, 9.0], early_stopping={"patience": 2})
        assert (log.code, log.last.step) == (0, 4)
        assert [metric.step for metric in log.of(Metric)] == [1, 2, 3, 4]
        assert {metric.total_steps for metric in log.of(Metric)} == {6}
        assert checkpoints(log) == [(3, False), (4, True)]
        for message in log.of(Message):
            reviewed(message.message)

    def test_patience_that_ends_with_the_last_step_does_not_stop_early(self, validated: Callable[..., Attempt]) -> None:
        log = validated([3.0, 2.8, 2.5, 2.0, 2.1, 2.2], early_stopping={"patience": 2}, promote_best=True)
        assert (log.of(Metric)[-1].step, log.last.step, len(log.of(Message))) == (6, 4, 1)

    def test_a_fall_by_less_than_the_threshold_does_not_count(self, validated: Callable[..., Attempt]) -> None:
        log = validated([3.0, 2.95, 2.94, 1.0, 1.0, 1.0], early_stopping={"patience": 2, "threshold": 0.1})
        assert log.last.step == 3


class TestPromotion:
    def test_the_result_is_the_adapter_of_the_lowest_loss(
        self, train: Trainings, validated: Callable[..., Attempt], reviewed: Reviewed
    ) -> None:
        changes = {"promote_best": True, "lr_scheduler_type": "constant"}
        log = validated([3.0, 1.0, 2.0, 2.0, 2.0, 2.0], **changes)
        assert checkpoints(log) == [(1, False), (2, False), (3, False), (6, False), (2, True)]
        assert (log.last.step, log.last.directory) == (2, "runs/run-a/checkpoints/step-000002")
        assert log.last.trained_tokens == log.of(Metric)[-1].trained_tokens
        assert log.of(CheckpointSaved)[-1].metrics["full_valid_loss"] == 1.0
        (message,) = log.of(Message)
        reviewed(message.message)

        manifest = artifact_directory.verify(log.result)
        assert (manifest["step"], manifest["metrics"]["full_valid_loss"]) == (2, 1.0)
        assert manifest["trained_tokens"] == log.of(Metric)[1].trained_tokens
        assert_same_adapter(log, train(max_steps=2, lr_scheduler_type="constant"))

    def test_the_best_checkpoint_is_kept_in_addition_to_the_last_three(self, validated: Callable[..., Attempt]) -> None:
        log = validated([1.0, 2.0, 3.0, 4.0, 5.0], n_epochs=5, eval_steps=None)
        kept = sorted(path.name for path in (log.workdir / "runs" / "run-a" / "checkpoints").iterdir())
        assert kept == ["step-000003", "step-000009", "step-000012", "step-000015"]
        assert log.last.step == 15

    def test_the_last_adapter_is_the_result_by_default_and_the_better_one_is_named(
        self, validated: Callable[..., Attempt]
    ) -> None:
        log = validated([1.0, 2.0], eval_steps=None)
        assert checkpoints(log) == [(3, False), (6, True)]
        assert log.last.step == 6
        assert "hyperparameters.promote_best" in log.of(Message)[0].message

    def test_the_last_adapter_is_the_result_of_losses_that_are_not_numbers(
        self, validated: Callable[..., Attempt]
    ) -> None:
        log = validated([float("nan"), float("nan")], eval_steps=None, promote_best=True)
        assert (log.code, log.last.step) == (0, 6)
        assert ["nan" in message.message for message in log.of(Message)] == [True, True]
        manifest = (log.result / artifact_directory.MANIFEST).read_text()
        assert json.loads(manifest, parse_constant=pytest.fail)["metrics"]["full_valid_loss"] is None


class TestSamples:
    def test_the_last_samples_are_of_the_result(
        self, train: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampling, "MAX_NEW_TOKENS", 6)
        yes, no = (write_answers(tmp_path / say, 16, say) for say in ("yes", "no"))
        changes = {"n_epochs": 4, "eval_steps": 2, "early_stopping": {"patience": 2}, "promote_best": True}
        log = train(training_file=yes, validation_file=no, sample_prompts=("1: red",), **changes)
        samples = [message.data for message in log.of(Message) if "prompt" in message.data]
        assert [sample["step"] for sample in samples] == [2, 4, 6, 4]
        assert log.last.step == 4
        assert samples[1] == samples[3]


class TestSideEffects:
    """A probe, a validation, samples and the last check change no weight and no random state."""

    def test_weights_and_random_states_stay_unchanged(self, tiny: Path, train: Trainings, tmp_path: Path) -> None:
        base = load_tiny_base(tiny)
        run = prepare(train.spec(dropout=0.2, sample_prompts=("1: red",)), base, tmp_path)
        make_one_step(base, run)
        directory = save_adapter(base, run, tmp_path)
        before = fingerprint(base, run)
        check_base(base)
        assert fingerprint(base, run) == before
        evaluate(make_objective(base, run), run.dataset, 2048, no_keepalive)
        assert fingerprint(base, run) == before
        sample_answers(base, run, load_renderer(tiny))
        assert fingerprint(base, run) == before
        verify_adapter(base, run, directory)
        assert fingerprint(base, run) == before
        make_one_step(base, run)
        assert fingerprint(base, run) != before


def fingerprint(base: FrozenBase, run: Run) -> str:
    """Return a hash of all weights, frozen and trained, and of all random states."""
    digest = hashlib.sha256()
    frozen = [tensor for _, tensor in sorted(base.model.state_dict().items())]
    states = [torch.get_rng_state(), run.adapter.generator.get_state()]
    for tensor in (*frozen, *run.parameters, *states):
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(repr(random.getstate()).encode())
    return digest.hexdigest()
