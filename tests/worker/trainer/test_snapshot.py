from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain import artifacts
from app.domain.events import Command, Message, Metric, SnapshotSaved, Started, Stopped
from app.domain.states import ExitCode, Reason
from tests.tiny import make_tiny_dataset
from tests.worker.trainer.house import Log, failure, final_adapter, make_spec, run_here
from worker.trainer.run import run
from worker.trainer.stop import Stops

STEPS = 6  # two epochs of three


def snapshot_of(log: Log, workdir: Path) -> Path:
    return workdir / str(log.of(SnapshotSaved)[-1].directory)


def drained_at(step: int, tiny: Path, examples: Path, workdir: Path, **changes: Any) -> Path:
    code, log = run_here(make_spec(tiny, examples, **changes), workdir, stop_at=(step, Command.DRAIN))
    assert code == ExitCode.DRAINED
    return snapshot_of(log, workdir)


class TestResume:
    @pytest.mark.parametrize("step", range(1, STEPS + 1))
    def test_a_run_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(
        self, tiny: Path, examples: Path, tmp_path: Path, step: int
    ) -> None:
        knobs = {"dropout": 0.2, "validation_file": examples, "batch_size": 4}
        _, whole = run_here(make_spec(tiny, examples, **knobs), tmp_path / "whole")
        snapshot = drained_at(step, tiny, examples, tmp_path / "first", **knobs)
        code, second = run_here(make_spec(tiny, examples, resume_from=snapshot, **knobs), tmp_path / "second")
        assert code == 0
        assert second.losses == whole.losses[step:]
        assert second.last.trained_tokens == whole.last.trained_tokens
        one, other = final_adapter(whole, tmp_path / "whole"), final_adapter(second, tmp_path / "second")
        assert all(torch.equal(one[name], other[name]) for name in one)
        directories = (tmp_path / "whole" / whole.last.directory, tmp_path / "second" / second.last.directory)
        manifests = [artifacts.verify(directory) for directory in directories]
        assert manifests[0] == manifests[1]

    def test_it_says_where_it_goes_on_from(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        _, log = run_here(make_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert log.of(Started)[0].start_step == 2
        assert [metric.step for metric in log.of(Metric)] == [3, 4, 5, 6]

    def test_what_was_decided_once_stays_decided(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a", threads=1)
        _, log = run_here(make_spec(tiny, examples, resume_from=snapshot, threads=2), tmp_path / "b")
        assert log.of(Started)[0].threads == 1

    def test_another_version_of_a_library_is_allowed_and_said(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        monkeypatch.setattr("worker.trainer.run.version", lambda package: "9.9")
        code, log = run_here(make_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert code == 0
        (message,) = log.of(Message)
        assert message.level == "warn"
        assert "-> 9.9" in message.message

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"learning_rate": 0.02}, "hyperparameters.learning_rate was 0.01 and is 0.02"),
            ({"batch_size": 3}, "hyperparameters.batch_size was 4 and is 3"),
            ({"r": 2}, "lora.r was 4 and is 2"),
            ({"seed": 8}, "seed was 7 and is 8"),
            ({"quantization": {"type": "fp4"}}, "quantization.type was 'nf4' and is 'fp4'"),
            ({"quantization": None}, "quantization.type was 'nf4' and is None"),
        ],
    )
    def test_a_changed_configuration_is_refused_by_name(
        self, tiny: Path, examples: Path, tmp_path: Path, changes: dict[str, Any], named: str
    ) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a")
        code, log = run_here(make_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "b")
        assert (code, failure(log).reason) == (ExitCode.BAD_SPEC, Reason.INVALID_SPEC)
        assert named in failure(log).message

    def test_changed_data_is_refused_by_name(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a")
        other = make_tiny_dataset(tmp_path / "other.jsonl", 12, seed=5)
        _, log = run_here(make_spec(tiny, other, resume_from=snapshot), tmp_path / "b")
        assert "training_file_sha256" in failure(log).message

    @pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
    def test_a_damaged_snapshot_is_never_used(self, tiny: Path, examples: Path, tmp_path: Path, damage: str) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a")
        state = snapshot / "state.safetensors"
        data = bytearray(state.read_bytes())
        if damage == "cut":
            state.write_bytes(data[:-1])
        elif damage == "flip":
            data[len(data) // 2] ^= 1
            state.write_bytes(data)
        else:
            state.unlink()
        code, log = run_here(make_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert (code, failure(log).reason) == (ExitCode.INTERNAL, Reason.TRAINER_CRASHED)
        assert "state.safetensors" in failure(log).message


class TestSaveSnapshot:
    def test_it_is_safetensors_and_json_and_its_manifest_holds(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path)
        assert {path.name for path in snapshot.iterdir()} == {"state.safetensors", "MANIFEST.json"}
        manifest = artifacts.verify(snapshot)
        assert manifest["step"] == 1
        assert manifest["choices"].pop("peak_bytes") > 0
        assert manifest["choices"] == {
            "compute_dtype": "bfloat16", "device": "cpu", "row_tokens": 2048, "threads": 1, "recompute": "nothing",
            "recompute_layers": 0, "cache_weights": False, "probed": True,
        }  # fmt: skip

    def test_the_record_names_the_manifests_hash(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_here(make_spec(tiny, examples), tmp_path, stop_at=(1, Command.DRAIN))
        (record,) = log.of(SnapshotSaved)
        assert record.manifest_sha256 == artifacts.sha256_file(tmp_path / record.directory / "MANIFEST.json")

    def test_one_is_written_whenever_the_interval_is_over_and_the_last_two_are_kept(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_here(make_spec(tiny, examples, snapshot_interval_seconds=0), tmp_path)
        assert [record.step for record in log.of(SnapshotSaved)] == [1, 2, 3, 4, 5]
        kept = sorted(path.name for path in (tmp_path / "runs" / "run-a" / "snapshots").iterdir())
        assert kept == ["step-000004", "step-000005"]

    def test_none_is_written_before_it_is_over(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_here(make_spec(tiny, examples, snapshot_interval_seconds=3600), tmp_path)
        assert log.of(SnapshotSaved) == []

    def test_an_optimizer_that_has_not_moved_yet_can_be_saved_too(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = make_spec(tiny, examples)
        stops = Stops(["run-a"])
        stops.drain_all()
        log = Log()
        assert run(spec, tmp_path, log, stops) == ExitCode.DRAINED
        assert json.loads((snapshot_of(log, tmp_path) / "MANIFEST.json").read_text())["step"] == 0
        again = make_spec(tiny, examples, resume_from=snapshot_of(log, tmp_path))
        assert run_here(again, tmp_path / "b")[0] == 0
        assert isinstance(log.last, Stopped)
