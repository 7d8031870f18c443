from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.events import CheckpointSaved, Command, Done, Message, Metric, SnapshotSaved, Started, Stopped
from app.domain.jobs.states import ExitCode, Reason
from app.system.host import cpu_name
from tests.tiny import make_tiny_dataset
from tests.worker.trainer.helpers import failure, final_adapter, float32_spec, make_spec, run_trainer
from worker.trainer.checkpoint import provenance
from worker.trainer.training import step_actions
from worker.trainer.validation import evaluate

RATES: list[dict[str, Any]] = [
    {"lr_scheduler_type": "cosine", "warmup_ratio": 0.3},
    {"alpha": 5.5, "use_rslora": True},
]


class TestWholeRun:
    @pytest.fixture
    def shortened(self) -> None:
        """Nothing is left out."""

    def test_it_reports_start_steps_checkpoints_and_end(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_trainer(float32_spec(tiny, examples, batch_size=6), tmp_path)
        assert code == ExitCode.DONE
        assert [record.kind for record in log.records] == [
            "started", "planned", "probed", "snapshot", "metric", "metric", "checkpoint", "metric", "metric",
            "checkpoint", "served_reference", "measured", "done",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "changes",
        [
            {"quantization": None},
            {"quantization": {"type": "fp4", "double_quant": False}},
            {"quantization": {"compute_dtype": "float16"}},
            {"packing": False},
            *(
                pytest.param(changes, marks=pytest.mark.extended("options that no other one changes"))
                for changes in RATES
            ),
        ],
    )
    def test_every_option_is_trained_and_verified(
        self, tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        code, log = run_trainer(make_spec(tiny, examples, **changes), tmp_path)
        assert code == 0, log.last
        asked = changes.get("quantization", {}) or {}
        assert log.of(Started)[0].compute_dtype == asked.get("compute_dtype", "bfloat16")
        assert log.last.step == 6


class TestRun:
    def test_started_describes_the_run(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_trainer(make_spec(tiny, examples), tmp_path)
        (started,) = log.of(Started)
        assert (started.device, started.compute_dtype, started.threads) == (f"cpu ({cpu_name()})", "bfloat16", 1)
        assert started.frozen_parameters == 90_624
        assert started.trainable_parameters == 4 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
        assert started.base_bytes < 90_624
        assert (started.examples, started.total_steps, started.start_step) == (12, 6, 0)
        assert 0 < started.labelled_tokens_per_epoch < started.tokens_per_epoch

    def test_every_step_has_its_metrics(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, batch_size=5), tmp_path)
        metrics = log.of(Metric)
        assert [metric.step for metric in metrics] == [1, 2, 3, 4, 5, 6]
        assert [round(metric.epoch, 3) for metric in metrics] == [0.333, 0.667, 1.0, 1.333, 1.667, 2.0]
        assert metrics[0].learning_rate > metrics[-1].learning_rate > 0
        assert metrics[-1].eta_seconds == 0 < metrics[0].eta_seconds
        assert all(metric.grad_norm > 0 and metric.tokens_per_second > 0 for metric in metrics)
        assert all(metric.peak_memory_bytes > 1 << 20 for metric in metrics)
        assert metrics[-1].trained_tokens == log.last.trained_tokens == 2 * log.of(Started)[0].tokens_per_epoch
        assert metrics[-1].train_loss < metrics[0].train_loss

    def test_the_validation_file_is_evaluated_after_each_epoch(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        valid = make_tiny_dataset(tmp_path / "valid.jsonl", 5, seed=9)
        _, log = run_trainer(float32_spec(tiny, examples, validation_file=valid), tmp_path)
        measured = [metric for metric in log.of(Metric) if metric.full_valid_loss is not None]
        assert [metric.step for metric in measured] == [3, 6]
        assert all(metric.valid_loss == metric.full_valid_loss for metric in measured)
        assert measured[1].full_valid_loss < measured[0].full_valid_loss
        assert measured[1].full_valid_mean_token_accuracy is not None

    def test_the_same_spec_gives_the_same_adapter_to_the_bit(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        spec = float32_spec(tiny, examples, dropout=0.1)
        one, other = (final_adapter(run_trainer(spec, where)[1], where) for where in (tmp_path / "a", tmp_path / "b"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_plain_text_is_trained_piece_by_piece(self, tiny: Path, tmp_path: Path) -> None:
        lines = [json.dumps({"text": f"{number} green bottles hanging on the wall " * 4}) for number in range(6)]
        (tmp_path / "text.jsonl").write_text("\n".join(lines))
        code, log = run_trainer(float32_spec(tiny, tmp_path / "text.jsonl", context_length=64, n_epochs=3), tmp_path)
        assert code == 0, log.last
        (started,) = log.of(Started)
        pieces = started.tokens_per_epoch - started.labelled_tokens_per_epoch  # each has one token to begin with
        assert started.examples == pieces == 6 * 3
        assert log.losses[-1] < log.losses[0]

    def test_relative_paths_are_below_the_work_directory(self, tiny: Path, tmp_path: Path) -> None:
        make_tiny_dataset(tmp_path / "inputs" / "train.jsonl")
        spec = float32_spec(tiny, tmp_path / "inputs" / "train.jsonl")
        run = spec.run.model_copy(update={"training_file": Path("inputs/train.jsonl")})
        assert run_trainer(spec.model_copy(update={"runs": (run,)}), tmp_path)[0] == 0

    def test_prompts_are_answered_by_the_base_and_by_the_adapter(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        prompts = ("1: red blue", "2: amber amber amber")
        changes = {"n_epochs": 2, "batch_size": 1, "learning_rate": 0.02, "r": 16, "alpha": 32}
        _, log = run_trainer(float32_spec(tiny, examples, sample_prompts=prompts, **changes), tmp_path)
        samples = [message.data for message in log.of(Message)]
        assert [(sample["step"], sample["prompt"]) for sample in samples] == [
            (step, prompt) for step in (12, 24) for prompt in prompts
        ]
        assert [sample["base"] for sample in samples[:2]] == [sample["base"] for sample in samples[2:]]
        assert all(sample["base"] != sample["tuned"] for sample in samples[2:])
        assert isinstance(log.last, Done)

    def test_the_base_answers_once(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        generate = evaluate._generate

        def counted(base: Any, prompts: Any, adapter: Any, renderer: Any) -> list[str]:
            asked.append("adapter" if adapter else "base")
            return generate(base, prompts, adapter, renderer)

        monkeypatch.setattr(evaluate, "_generate", counted)
        monkeypatch.setattr(evaluate, "MAX_NEW_TOKENS", 2)
        run_trainer(float32_spec(tiny, examples, sample_prompts=("1: red",)), tmp_path)
        assert asked == ["base", "adapter", "adapter"]

    @pytest.mark.parametrize(
        ("ratio", "effect"),
        [(3.04, "a matrix product takes 3.0 times as long"), (71.0, "matrix products are converted to float32")],
    )
    def test_a_processor_that_emulates_the_compute_dtype_causes_a_warning(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, effect: str
    ) -> None:
        monkeypatch.setattr(provenance, "times_float32", lambda *_: ratio)
        _, log = run_trainer(make_spec(tiny, examples, max_steps=1), tmp_path)
        warned = [message.message for message in log.of(Message) if message.level == "warn"]
        assert warned[0].startswith(f"This processor has no instructions for bfloat16: {effect}")
        assert warned[0].endswith('set quantization {"compute_dtype": "float32"}.')


class TestStopping:
    def test_cancel_saves_nothing(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(2, Command.CANCEL))
        assert code == ExitCode.CANCELLED
        assert log.last == Stopped(run_id="run-a", reason=Reason.CANCELLED, step=2)
        assert not log.of(CheckpointSaved)
        assert [saved.step for saved in log.of(SnapshotSaved)] == [0]  # what was decided before the first step

    def test_pause_leaves_a_checkpoint_and_a_snapshot(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(2, Command.PAUSE))
        assert code == ExitCode.PAUSED
        assert [record.kind for record in log.records[-3:]] == ["snapshot", "checkpoint", "stopped"]
        assert [record.step for record in log.records[-3:]] == [2, 2, 2]
        assert not log.of(CheckpointSaved)[0].final

    def test_drain_leaves_a_snapshot(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(2, Command.DRAIN))
        assert code == ExitCode.DRAINED
        assert [record.kind for record in log.records[-2:]] == ["snapshot", "stopped"]

    def test_a_checkpoint_is_reported_once_also_with_a_pause_after_an_epoch(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(3, Command.PAUSE))
        assert [record.step for record in log.of(CheckpointSaved)] == [3]

    @pytest.mark.parametrize(
        ("command", "code"), [(Command.PAUSE, ExitCode.PAUSED), (Command.CANCEL, ExitCode.CANCELLED)]
    )
    def test_a_stop_after_the_last_step_still_stops_the_run(
        self, tiny: Path, examples: Path, tmp_path: Path, command: Command, code: int
    ) -> None:
        assert run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(6, command))[0] == code


class TestFailing:
    def fails(self, workdir: Path, spec: Any, code: int, reason: Reason, param: str | None, text: str) -> None:
        got, log = run_trainer(spec, workdir)
        record = failure(log)
        assert (got, record.reason, record.param) == (code, reason, param)
        assert text in record.message
        assert "Traceback" not in record.message

    def test_a_dataset_without_labels(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        spec = float32_spec(tiny, examples, context_length=5)
        self.fails(
            tmp_path, spec, 64, Reason.INVALID_TRAINING_FILE, "hyperparameters.context_length", "No example has a token"
        )

    def test_an_invalid_line_of_the_validation_file(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        (tmp_path / "valid.jsonl").write_text("{}\n")
        spec = float32_spec(tiny, examples, validation_file=tmp_path / "valid.jsonl")
        self.fails(tmp_path, spec, 64, Reason.INVALID_VALIDATION_FILE, "validation_file", "Line 1")

    @pytest.mark.parametrize("parameter", [{"eval_steps": 2}, {"early_stopping": {}}, {"promote_best": True}])
    def test_a_parameter_that_needs_a_validation_file(
        self, tiny: Path, examples: Path, tmp_path: Path, parameter: dict[str, Any]
    ) -> None:
        param = f"hyperparameters.{next(iter(parameter))}"
        self.fails(
            tmp_path, float32_spec(tiny, examples, **parameter), 64, Reason.INVALID_SPEC, param, "needs a validation"
        )

    @pytest.mark.parametrize("which", ["training_file", "validation_file"])
    def test_a_file_that_is_not_the_one_the_spec_names(self, tiny: Path, tmp_path: Path, which: str) -> None:
        files = {name: make_tiny_dataset(tmp_path / name) for name in ("training_file", "validation_file")}
        spec = float32_spec(tiny, **files)
        make_tiny_dataset(tmp_path / which, seed=1)
        self.fails(tmp_path, spec, 64, Reason(f"invalid_{which}"), which, "is not the")

    def test_a_gpu_that_is_not_there(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is one")
        self.fails(tmp_path, float32_spec(tiny, examples, device="cuda"), 69, Reason.DEVICE_LOST, None, "NVIDIA")

    def test_a_diverging_run_stops_at_that_step(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        spec = float32_spec(tiny, examples, learning_rate=1e30, batch_size=3)
        code, log = run_trainer(spec, tmp_path)
        record = failure(log)
        assert (code, record.reason, record.param) == (64, Reason.NON_FINITE_LOSS, "hyperparameters.learning_rate")
        assert record.message.startswith("Step 2 has the loss")
        assert "It trained on the lines " in record.message
        assert len(log.of(Metric)) == 1

    def test_running_out_of_memory(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_much(*_: object, **_named: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("worker.trainer.objective.objective.linear_cross_entropy", too_much)
        self.fails(
            tmp_path, float32_spec(tiny, examples), ExitCode.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY,
            "hyperparameters.context_length", "Lower hyperparameters.context_length",
        )  # fmt: skip

    def test_an_adapter_that_differs_from_the_trained_one_fails_the_run(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = step_actions.save_checkpoint

        def save_wrongly(*arguments: Any) -> Path:
            directory = save(*arguments)
            tensors = load_file(directory / "adapter_model.safetensors")
            save_file(
                {name: tensor * 1.01 for name, tensor in tensors.items()}, directory / "adapter_model.safetensors"
            )
            return directory

        monkeypatch.setattr(step_actions, "save_checkpoint", save_wrongly)
        self.fails(tmp_path, float32_spec(tiny, examples), 70, Reason.ADAPTER_MISMATCH, None, "It was not published")
