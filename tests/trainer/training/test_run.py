from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.domain.jobs.events import CheckpointSaved, Command, Message, Metric, Planned, SnapshotSaved, Started, Stopped
from app.domain.jobs.states import ExitCode, Reason
from app.system.host import cpu_name
from tests.tiny import make_tiny_dataset
from tests.trainer.helpers import Attempt, Trainings
from worker.trainer.checkpoint import provenance
from worker.trainer.runtime import device
from worker.trainer.training import run_files


class TestWholeRun:
    @pytest.fixture
    def shortened(self) -> None:
        """Nothing is left out."""

    def test_a_run_reports_start_steps_checkpoints_and_end(self, train: Trainings) -> None:
        log = train(batch_size=6)
        assert log.code == ExitCode.DONE
        assert [record.kind for record in log.records] == [
            "started", "planned", "probed", "snapshot", "metric", "metric", "checkpoint", "metric", "metric",
            "checkpoint", "served_reference", "measured", "done",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "changes",
        [
            {"quantization": {"type": "fp4", "double_quant": False}},
            {"quantization": {"compute_dtype": "float16"}},
            {"quantization": {"bits": 8}, "use_dora": True},
        ],
    )
    def test_every_quantization_is_trained_and_verified(self, train: Trainings, changes: dict[str, Any]) -> None:
        log = train(**changes, n_epochs=1, lr_scheduler_type="cosine", warmup_ratio=0.3)
        assert (log.code, log.last.step) == (ExitCode.DONE, 3), log.last
        asked = changes["quantization"]
        assert log.of(Started)[0].compute_dtype == asked.get("compute_dtype", "bfloat16")
        assert ("8-bit" in (log.result / "README.md").read_text()) == (asked.get("bits") == 8)


class TestRun:
    def test_started_describes_the_run(self, train: Trainings) -> None:
        (started,) = train(quantization={}, max_steps=1).of(Started)
        assert (started.device, started.compute_dtype, started.threads) == (f"cpu ({cpu_name()})", "bfloat16", 1)
        assert started.frozen_parameters == 90_624
        assert started.trainable_parameters == 4 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
        assert started.base_bytes < 90_624
        assert {"logits", f"hidden states in {started.compute_dtype}", "quantization"} < started.margins.keys()
        assert all(0 <= found <= allowed for found, allowed in started.margins.values())
        assert (started.examples, started.total_steps, started.start_step) == (12, 1, 0)
        assert 0 < started.labelled_tokens_per_epoch < started.tokens_per_epoch

    def test_every_step_has_its_metrics(self, train: Trainings) -> None:
        log = train(batch_size=5)
        metrics = log.of(Metric)
        assert [metric.step for metric in metrics] == [1, 2, 3, 4, 5, 6]
        assert [round(metric.epoch, 3) for metric in metrics] == [0.333, 0.667, 1.0, 1.333, 1.667, 2.0]
        assert metrics[0].learning_rate > metrics[-1].learning_rate > 0
        assert metrics[-1].eta_seconds == 0 < metrics[0].eta_seconds
        assert all(metric.grad_norm > 0 and metric.tokens_per_second > 0 for metric in metrics)
        assert all(metric.peak_memory_bytes > 1 << 20 for metric in metrics)
        assert metrics[-1].trained_tokens == log.last.trained_tokens == 2 * log.of(Started)[0].tokens_per_epoch
        assert metrics[-1].train_loss < metrics[0].train_loss

    def test_plain_text_is_trained_piece_by_piece(self, train: Trainings, tmp_path: Path) -> None:
        lines = [json.dumps({"text": f"{number} green bottles hanging on the wall " * 4}) for number in range(6)]
        (tmp_path / "text.jsonl").write_text("\n".join(lines))
        log = train(training_file=tmp_path / "text.jsonl", context_length=64, n_epochs=3)
        assert log.code == ExitCode.DONE, log.last
        (started,) = log.of(Started)
        pieces = started.tokens_per_epoch - started.labelled_tokens_per_epoch  # each has one token to begin with
        assert started.examples == pieces == 6 * 3
        assert log.losses[-1] < log.losses[0]

    def test_relative_paths_are_below_the_work_directory(self, train: Trainings, tmp_path: Path) -> None:
        spec = train.spec(training_file=make_tiny_dataset(tmp_path / "inputs" / "train.jsonl"), max_steps=1)
        run = spec.run.model_copy(update={"training_file": Path("inputs/train.jsonl")})
        assert train.run(spec.model_copy(update={"runs": (run,)}), tmp_path).code == ExitCode.DONE

    def test_prompts_are_answered_by_the_base_and_by_the_adapter(self, train: Trainings) -> None:
        prompts = ("1: red blue", "2: amber amber amber")
        changes = {"n_epochs": 2, "batch_size": 1, "learning_rate": 0.02, "r": 16, "alpha": 32}
        log = train(sample_prompts=prompts, **changes)
        samples = [message.data for message in log.of(Message)]
        assert [(sample["step"], sample["prompt"]) for sample in samples] == [
            (step, prompt) for step in (12, 24) for prompt in prompts
        ]
        assert [sample["base"] for sample in samples[:2]] == [sample["base"] for sample in samples[2:]]
        assert all(sample["base"] != sample["tuned"] for sample in samples[2:])
        assert log.code == ExitCode.DONE

    def test_a_requested_dtype_without_instructions_for_it_causes_a_warning_and_the_default_is_float32(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (device, provenance):
            monkeypatch.setattr(module, "multiplies_fast", lambda dtype: dtype == "float32")
        asked, free = (train(quantization={}, dtype_is_free=is_free, max_steps=1) for is_free in (False, True))
        first = asked.warnings[0].message
        assert "no instructions for bfloat16" in first
        assert 'quantization.compute_dtype to "float32"' in first
        assert not free.warnings
        assert [log.of(Started)[0].compute_dtype for log in (asked, free)] == ["bfloat16", "float32"]
        caches = [log.of(Planned)[0].components["cache"] for log in (asked, free)]
        assert caches[1] == 2 * caches[0] > 0  # the memory plan uses the chosen dtype

    def test_without_quantization_the_layers_stay_in_16_bits_where_products_are_in_float32(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fast = train(quantization=None, max_steps=1)
        for module in (device, provenance):
            monkeypatch.setattr(module, "multiplies_fast", lambda dtype: dtype == "float32")
        slow = train(quantization=None, max_steps=1)
        assert (slow.code, slow.warnings) == (ExitCode.DONE, [])
        before, after = (log.of(Started)[0] for log in (fast, slow))
        assert (before.compute_dtype, after.compute_dtype) == ("bfloat16", "float32")
        assert before.base_bytes < after.base_bytes < 2 * before.base_bytes  # the embeddings have the compute dtype
        live = [log.of(Planned)[0].components["live_layer"] for log in (fast, slow)]
        assert live[1] > 1.9 * live[0]


class TestStopping:
    def test_cancel_saves_nothing(self, train: Trainings) -> None:
        log = train(stop_at=(2, Command.CANCEL))
        assert log.code == ExitCode.CANCELLED
        assert log.last == Stopped(run_id="run-a", reason=Reason.CANCELLED, step=2)
        assert not log.of(CheckpointSaved)
        assert [saved.step for saved in log.of(SnapshotSaved)] == [0]  # what was decided before the first step

    def test_pause_leaves_a_checkpoint_and_a_snapshot(self, train: Trainings) -> None:
        log = train(stop_at=(2, Command.PAUSE))
        assert log.code == ExitCode.PAUSED
        assert [(each.kind, each.step) for each in log.records[-3:]] == [
            ("snapshot", 2), ("checkpoint", 2), ("stopped", 2)
        ]  # fmt: skip
        assert not log.of(CheckpointSaved)[0].final

    def test_a_pause_after_an_epoch_reports_its_checkpoint_once(self, train: Trainings) -> None:
        assert [record.step for record in train(stop_at=(3, Command.PAUSE)).of(CheckpointSaved)] == [3]

    @pytest.mark.parametrize(
        ("command", "code"), [(Command.PAUSE, ExitCode.PAUSED), (Command.CANCEL, ExitCode.CANCELLED)]
    )
    def test_a_stop_after_the_last_step_still_stops_the_run(
        self, train: Trainings, command: Command, code: int
    ) -> None:
        assert train(stop_at=(6, command)).code == code


def assert_fails(log: Attempt, code: int, reason: Reason, param: str | None) -> None:
    assert (log.code, log.failure.reason, log.failure.param) == (code, reason, param)
    assert "Traceback" not in log.failure.message


class TestFailing:
    def test_an_invalid_line_of_the_validation_file_fails(self, train: Trainings, tmp_path: Path) -> None:
        (tmp_path / "valid.jsonl").write_text("{}\n")
        log = train(validation_file=tmp_path / "valid.jsonl")
        assert_fails(log, ExitCode.BAD_SPEC, Reason.INVALID_VALIDATION_FILE, "validation_file")
        assert "Line 1" in log.failure.message

    @pytest.mark.parametrize("parameter", [{"eval_steps": 2}, {"early_stopping": {}}, {"promote_best": True}])
    def test_a_parameter_that_needs_a_validation_file_fails_without(
        self, train: Trainings, parameter: dict[str, Any]
    ) -> None:
        param = f"hyperparameters.{next(iter(parameter))}"
        assert_fails(train(**parameter), ExitCode.BAD_SPEC, Reason.INVALID_SPEC, param)

    @pytest.mark.parametrize("which", ["training_file", "validation_file"])
    def test_a_file_that_is_not_the_one_of_the_spec_fails(self, train: Trainings, tmp_path: Path, which: str) -> None:
        files = {name: make_tiny_dataset(tmp_path / name) for name in ("training_file", "validation_file")}
        spec = train.spec(**files)
        make_tiny_dataset(tmp_path / which, seed=1)
        assert_fails(train.run(spec), ExitCode.BAD_SPEC, Reason(f"invalid_{which}"), which)

    def test_a_diverging_run_stops_at_that_step(self, train: Trainings) -> None:
        log = train(learning_rate=1e30, batch_size=3)
        assert_fails(log, ExitCode.BAD_SPEC, Reason.NON_FINITE_LOSS, "hyperparameters.learning_rate")
        assert "Step 2" in log.failure.message
        assert "the lines " in log.failure.message
        assert len(log.of(Metric)) == 1

    def test_an_adapter_that_differs_from_the_trained_one_fails_the_run(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = run_files.save_checkpoint

        def save_wrongly(*arguments: Any) -> Path:
            directory = save(*arguments)
            tensors = load_file(directory / "adapter_model.safetensors")
            save_file(
                {name: tensor * 1.01 for name, tensor in tensors.items()}, directory / "adapter_model.safetensors"
            )
            return directory

        monkeypatch.setattr(run_files, "save_checkpoint", save_wrongly)
        assert_fails(train(), ExitCode.INTERNAL, Reason.ADAPTER_MISMATCH, None)
