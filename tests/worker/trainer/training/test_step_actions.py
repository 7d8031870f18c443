"""Between steps: when the validation file is evaluated, the effects of it, and what must stay unchanged."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.artifacts.engines import compatibility
from app.domain.jobs.events import CheckpointSaved, Done, Message, Metric
from app.system import artifact_directory
from app.system.tokenizer_files import load_renderer
from tests.worker.trainer.helpers import (
    RecordLog,
    float32_spec,
    load_tiny_base,
    make_one_step,
    no_keepalive,
    prepare,
    run_trainer,
    write_answers,
)
from worker.trainer.checkpoint.verify import verify_adapter
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.metrics import BatchSums, StepMetrics
from worker.trainer.training import step_actions
from worker.trainer.training.run import make_objective
from worker.trainer.training.state import Run
from worker.trainer.validation import evaluate as sampling
from worker.trainer.validation.evaluate import evaluate, sample_answers


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The results of the next validations, in order; a test fills the list."""
    losses: list[float] = []
    monkeypatch.setattr(step_actions, "evaluate", lambda *_: of_loss(losses.pop(0)))
    return losses


def of_loss(loss: float) -> StepMetrics:
    """Return the metrics of a validation with one labelled token."""
    validation = StepMetrics(torch.device("cpu"))
    validation.add(BatchSums(1, 1, torch.tensor(loss, dtype=torch.float64), torch.tensor(1)))
    return validation


def measured(log: RecordLog) -> list[int]:
    return [metric.step for metric in log.of(Metric) if metric.full_valid_loss is not None]


def checkpoints(log: RecordLog) -> list[tuple[int, bool]]:
    return [(record.step, record.final) for record in log.of(CheckpointSaved)]


def texts(log: RecordLog) -> list[str]:
    return [message.message for message in log.of(Message)]


class TestSchedule:
    @pytest.mark.parametrize(
        ("changes", "steps"),
        [
            ({}, [3, 6]),
            ({"eval_steps": 1}, [1, 2, 3, 4, 5, 6]),
            ({"eval_steps": 2}, [2, 4, 6]),
            ({"eval_steps": 4}, [4, 6]),
            ({"eval_steps": 100}, [6]),
            ({"eval_steps": 2, "max_steps": 5}, [2, 4, 5]),
            ({"max_steps": 4}, [3, 4]),
        ],
    )
    def test_validation_every_eval_steps_else_each_epoch_and_at_the_end(
        self, tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, Any], steps: list[int]
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, **changes), tmp_path)
        assert measured(log) == steps

    def test_validation_by_steps_adds_no_checkpoints_if_the_last_adapter_is_the_result(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, eval_steps=1), tmp_path)
        assert checkpoints(log) == [(3, False), (6, True)]


class TestEarlyStopping:
    def test_the_run_ends_at_that_step_with_an_event(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [3.0, 2.0, 2.1, 2.2, 9.0, 9.0]
        changes = {"eval_steps": 1, "early_stopping": {"patience": 2}}
        code, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, **changes), tmp_path)
        assert (code, log.last.step) == (0, 4)
        assert [metric.step for metric in log.of(Metric)] == [1, 2, 3, 4]
        assert {metric.total_steps for metric in log.of(Metric)} == {6}
        assert checkpoints(log) == [(3, False), (4, True)]
        assert texts(log) == [
            "Stopped early after step 4 of 6: the full validation loss did not fall in 2 validation(s) in a row. "
            "The lowest was 2.0000 after step 2.",
            "The result is the last adapter, of step 4. The full validation loss was lower after step 2: 2.0000. "
            "Set hyperparameters.promote_best to get the adapter with the lowest loss.",
        ]

    def test_patience_that_ends_with_the_last_step_does_not_stop_early(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [3.0, 2.8, 2.5, 2.0, 2.1, 2.2]
        changes = {"eval_steps": 1, "early_stopping": {"patience": 2}, "promote_best": True}
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, **changes), tmp_path)
        assert log.of(Metric)[-1].step == 6
        assert texts(log) == ["The result is the adapter of step 4, with the lowest full validation loss, 2.0000."]

    def test_a_fall_by_less_than_the_threshold_does_not_count(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [3.0, 2.95, 2.94, 1.0, 1.0, 1.0]
        changes = {"eval_steps": 1, "early_stopping": {"patience": 2, "threshold": 0.1}}
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, **changes), tmp_path)
        assert log.last.step == 3


class TestPromotion:
    def test_the_result_is_the_adapter_of_the_lowest_loss(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
        changes = {"validation_file": examples, "eval_steps": 1, "promote_best": True}
        _, log = run_trainer(float32_spec(tiny, examples, **changes), tmp_path / "best")
        assert checkpoints(log) == [(1, False), (2, False), (3, False), (6, False), (2, True)]
        assert isinstance(log.last, Done)
        assert (log.last.step, log.last.directory) == (2, "runs/run-a/checkpoints/step-000002")
        assert log.last.trained_tokens == log.of(Metric)[-1].trained_tokens
        assert log.of(CheckpointSaved)[-1].metrics["full_valid_loss"] == 1.0
        assert texts(log) == ["The result is the adapter of step 2, with the lowest full validation loss, 1.0000."]

        manifest = artifact_directory.verify(tmp_path / "best" / log.last.directory)
        assert (manifest["step"], manifest["metrics"]["full_valid_loss"]) == (2, 1.0)
        assert manifest["trained_tokens"] == log.of(Metric)[1].trained_tokens
        _, short = run_trainer(
            float32_spec(tiny, examples, max_steps=2, lr_scheduler_type="constant"), tmp_path / "short"
        )
        scripted += [3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
        spec = float32_spec(tiny, examples, lr_scheduler_type="constant", **changes)
        _, long = run_trainer(spec, tmp_path / "long")
        mine, theirs = (
            load_file(tmp_path / name / each.last.directory / "adapter_model.safetensors")
            for name, each in (("long", long), ("short", short))
        )
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)

    def test_the_best_checkpoint_is_kept_in_addition_to_the_last_three(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [1.0, 2.0, 3.0, 4.0, 5.0]
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, n_epochs=5), tmp_path)
        kept = sorted(path.name for path in (tmp_path / "runs" / "run-a" / "checkpoints").iterdir())
        assert kept == ["step-000003", "step-000009", "step-000012", "step-000015"]
        assert log.last.step == 15

    def test_by_default_the_last_adapter_is_the_result_and_the_better_one_is_named(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [1.0, 2.0]
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=examples), tmp_path)
        assert checkpoints(log) == [(3, False), (6, True)]
        assert log.last.step == 6
        assert "lower after step 3: 1.0000. Set hyperparameters.promote_best" in texts(log)[0]

    def test_with_losses_that_are_not_numbers_the_last_adapter_is_the_result(
        self, tiny: Path, examples: Path, tmp_path: Path, scripted: list[float]
    ) -> None:
        scripted += [float("nan"), float("nan")]
        code, log = run_trainer(float32_spec(tiny, examples, validation_file=examples, promote_best=True), tmp_path)
        assert (code, log.last.step) == (0, 6)
        assert texts(log) == [
            f"The full validation loss after step {step} is nan; it counts as an increase." for step in (3, 6)
        ]
        manifest = (tmp_path / log.last.directory / artifact_directory.MANIFEST).read_text()
        assert json.loads(manifest, parse_constant=pytest.fail)["metrics"]["full_valid_loss"] is None


class TestSamples:
    def test_the_last_samples_are_of_the_result(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampling, "MAX_NEW_TOKENS", 6)
        train, valid = (write_answers(tmp_path / say, 16, say) for say in ("yes", "no"))
        changes = {"n_epochs": 4, "eval_steps": 2, "early_stopping": {"patience": 2}, "promote_best": True}
        spec = float32_spec(tiny, train, validation_file=valid, sample_prompts=("1: red",), **changes)
        _, log = run_trainer(spec, tmp_path)
        samples = [message.data for message in log.of(Message) if "prompt" in message.data]
        assert [sample["step"] for sample in samples] == [2, 4, 6, 4]
        assert log.last.step == 4
        assert samples[1] == samples[3]


class TestSideEffects:
    """A probe, a validation, samples and the last check change no weight and no random state."""

    def test_weights_and_random_states_stay_unchanged(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        base = load_tiny_base(tiny)
        spec = float32_spec(tiny, examples, dropout=0.2, sample_prompts=("1: red",))
        run = prepare(spec, base, tmp_path)
        make_one_step(base, run)
        directory = step_actions.save_checkpoint(with_facts(run), base)
        before = fingerprint(base, run)
        check_base(base)
        assert fingerprint(base, run) == before
        evaluate(make_objective(base, run), run.dataset, 2048, no_keepalive)
        assert fingerprint(base, run) == before
        list(sample_answers(base, run, load_renderer(tiny)))
        assert fingerprint(base, run) == before
        verify_adapter(base, run, directory)
        assert fingerprint(base, run) == before
        make_one_step(base, run)
        assert fingerprint(base, run) != before


def with_facts(run: Run) -> Run:
    run.provenance |= {
        "base_model": {"name": "tiny"}, "lora": run.spec.lora.model_dump(mode="json"), "quantization": None,
        "hyperparameters": run.spec.hyperparameters.model_dump(mode="json"), "seed": run.spec.seed,
        "compatibility": compatibility(run.spec.lora, run.spec.run_id).model_dump(mode="json"),
    }  # fmt: skip
    return run


def fingerprint(base: FrozenBase, run: Run) -> str:
    """Return a hash of all weights, frozen and trained, and of all random states."""
    digest = hashlib.sha256()
    frozen = [tensor for _, tensor in sorted(base.model.state_dict().items())]
    states = [torch.get_rng_state(), run.adapter.generator.get_state()]
    for tensor in (*frozen, *run.parameters, *states):
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(repr(random.getstate()).encode())
    return digest.hexdigest()
