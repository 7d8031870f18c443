from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.events import Command, Message, Metric, SnapshotSaved, Started, Stopped
from app.domain.jobs.states import ExitCode, Reason
from app.system import artifact_directory
from app.system.host import cpu_name
from tests.tiny import CHAT_TEMPLATE, make_tiny_base, make_tiny_dataset
from tests.worker.trainer.helpers import RecordLog, failure, final_adapter, float32_spec, run_trainer, slow_but
from worker.trainer.runtime.process import StopRequests
from worker.trainer.training.run import run

STEPS = 6  # two epochs of three
FILES = ("state.safetensors", "MANIFEST.json")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "flipped": flip,
}


def snapshot_of(log: RecordLog, workdir: Path) -> Path:
    return workdir / str(log.of(SnapshotSaved)[-1].directory)


DRAINED: dict[str, tuple[Path, Path]] = {}  # by its arguments, the directory of the run and its snapshot within it


def drained_at(step: int, tiny: Path, examples: Path, workdir: Path, **changes: Any) -> Path:
    """Return the snapshot of a run that was drained at this step. Equal runs are made once, and copied to `workdir`."""
    key = repr((step, tiny, examples, changes))
    if key not in DRAINED:
        first = examples.parent / f"drained-{len(DRAINED)}"
        code, log = run_trainer(float32_spec(tiny, examples, **changes), first, stop_at=(step, Command.DRAIN))
        assert code == ExitCode.DRAINED
        DRAINED[key] = (first, snapshot_of(log, first).relative_to(first))
    first, snapshot = DRAINED[key]
    shutil.copytree(first, workdir, dirs_exist_ok=True)
    return workdir / snapshot


WHOLE: dict[str, tuple[RecordLog, Path]] = {}


def whole_run(tiny: Path, examples: Path, **changes: Any) -> tuple[RecordLog, Path]:
    """Return the records of an uninterrupted run and its directory. Equal runs are made once."""
    key = repr((tiny, examples, changes))
    if key not in WHOLE:
        workdir = examples.parent / f"whole-{len(WHOLE)}"
        WHOLE[key] = run_trainer(float32_spec(tiny, examples, **changes), workdir)[1], workdir
    return WHOLE[key]


class TestResume:
    @pytest.mark.parametrize("step", slow_but([2], range(1, STEPS + 1), [3]))  # within an epoch, and at its end
    def test_an_interrupted_run_has_the_same_result_to_the_bit(
        self, tiny: Path, examples: Path, tmp_path: Path, step: int
    ) -> None:
        changes = {"dropout": 0.2, "validation_file": examples, "batch_size": 4}
        whole, whole_directory = whole_run(tiny, examples, **changes)
        snapshot = drained_at(step, tiny, examples, tmp_path / "first", **changes)
        code, second = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "second")
        assert code == 0
        assert second.losses == whole.losses[step:]
        assert second.last.trained_tokens == whole.last.trained_tokens
        one, other = final_adapter(whole, whole_directory), final_adapter(second, tmp_path / "second")
        assert all(torch.equal(one[name], other[name]) for name in one)
        directories = (whole_directory / whole.last.directory, tmp_path / "second" / second.last.directory)
        manifests = [artifact_directory.verify(directory) for directory in directories]
        assert manifests[0] == manifests[1]

    def test_started_reports_the_step_from_which_it_resumes(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        _, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert log.of(Started)[0].start_step == 2
        assert [metric.step for metric in log.of(Metric)] == [3, 4, 5, 6]

    def test_the_plan_of_the_first_attempt_is_kept(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a", threads=1)
        _, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, threads=2), tmp_path / "b")
        assert log.of(Started)[0].threads == 1

    def test_another_version_of_a_library_is_allowed_with_a_warning(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        monkeypatch.setattr("worker.trainer.checkpoint.provenance.version", lambda package: "9.9")
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert code == 0
        (message,) = log.of(Message)
        assert message.level == "warn"
        assert "-> 9.9" in message.message

    @pytest.mark.parametrize(
        ("dropout", "how"), [(0.0, "equal within rounding, not to the bit."), (0.2, "dropout masks differ.")]
    )
    def test_from_a_gpu_to_a_cpu_the_generator_is_seeded_again_with_a_warning(
        self, tiny: Path, examples: Path, tmp_path: Path, dropout: float, how: str
    ) -> None:
        whole, _ = whole_run(tiny, examples, dropout=dropout)
        snapshot = drained_at(2, tiny, examples, tmp_path / "a", dropout=dropout)
        manifest, state = artifact_directory.verify(snapshot), load_file(snapshot / "state.safetensors")
        save_file(state | {"random/dropout": torch.zeros(16, dtype=torch.uint8)}, snapshot / "state.safetensors")
        manifest["choices"]["device"] = "cuda (NVIDIA H100)"
        artifact_directory.write_manifest(snapshot, manifest)
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, dropout=dropout), tmp_path / "b")
        assert code == ExitCode.DONE
        assert log.of(Message)[0].message.endswith(how)
        assert (log.losses == whole.losses[2:]) == (not dropout)

    def test_another_processor_is_allowed_with_a_warning(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        monkeypatch.setattr("worker.trainer.runtime.device.cpu_name", lambda: "Another CPU")
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot), tmp_path / "b")
        assert code == 0
        (message,) = log.of(Message)
        assert message.level == "warn"
        assert "-> cpu (Another CPU): the result is equal within rounding" in message.message

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
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, **changes), tmp_path / "b")
        assert (code, failure(log).reason) == (ExitCode.BAD_SPEC, Reason.INVALID_SPEC)
        assert named in failure(log).message

    def test_changed_data_is_refused_by_name(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a")
        other = make_tiny_dataset(tmp_path / "other.jsonl", 12, seed=5)
        _, log = run_trainer(float32_spec(tiny, other, resume_from=snapshot), tmp_path / "b")
        assert "training_file_sha256" in failure(log).message

    def test_another_tokenizer_is_refused_by_name(self, examples: Path, tmp_path: Path) -> None:
        base = make_tiny_base(tmp_path / "base")
        snapshot = drained_at(1, base, examples, tmp_path / "a")
        (base / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("\\n", " "))
        _, log = run_trainer(float32_spec(base, examples, resume_from=snapshot), tmp_path / "b")
        assert "tokenizer_sha256.chat_template.jinja was" in failure(log).message

    def test_another_base_is_refused_by_name(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a")
        other = make_tiny_base(tmp_path / "base", seed=1)
        _, log = run_trainer(float32_spec(other, examples, resume_from=snapshot), tmp_path / "b")
        assert "base_model.manifest_sha256 was" in failure(log).message
        assert "tokenizer" not in failure(log).message

    def test_other_validation_data_is_refused_by_name(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path / "a", validation_file=examples)
        other = make_tiny_dataset(tmp_path / "other.jsonl", 12, seed=5)
        _, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, validation_file=other), tmp_path / "b")
        assert "validation_file_sha256 was" in failure(log).message

    @pytest.mark.parametrize(("dropout", "effect"), [(0.0, "equal within rounding"), (0.2, "dropout masks differ")])
    def test_another_number_of_processes_is_allowed_with_a_warning(
        self, tiny: Path, examples: Path, tmp_path: Path, dropout: float, effect: str
    ) -> None:
        snapshot = rewritten(drained_at(1, tiny, examples, tmp_path / "a", dropout=dropout), identity={"world_size": 2})
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=snapshot, dropout=dropout), tmp_path / "b")
        assert code == ExitCode.DONE
        (message,) = (each.message for each in log.of(Message) if "processes" in each.message)
        assert "with processes 2 -> 1: " in message
        assert effect in message

    def test_a_snapshot_from_before_a_parameter_existed_still_opens(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        whole, whole_directory = whole_run(tiny, examples)
        snapshot = drained_at(2, tiny, examples, tmp_path / "a")
        older = rewritten(snapshot, identity={"hyperparameters.promote_best": ..., "lora.use_dora": ...}, best=...)
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=older), tmp_path / "b")
        assert code == 0
        one, other = final_adapter(whole, whole_directory), final_adapter(log, tmp_path / "b")
        assert all(torch.equal(one[name], other[name]) for name in one)

    patterns: ClassVar[dict[str, Any]] = {
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*(up|down)_proj": 6},
        "alpha_pattern": {"v_proj": 3, "model.layers.0.mlp.down_proj": 1.5},
    }

    def with_asked_patterns(self, snapshot: Path, **asked: dict[str, Any]) -> Path:
        """The identity of a snapshot from before patterns were matched when a job is created."""
        names = [name for name in artifact_directory.verify(snapshot)["identity"] if "_pattern." in name]
        assert names
        assert all(r"model\.layers\." in name for name in names)
        given = {f"lora.{param}.{key}": number for param in asked for key, number in asked[param].items()}
        return rewritten(snapshot, identity=dict.fromkeys(names, ...) | given)

    def test_one_with_the_patterns_of_the_request_still_opens(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        whole, whole_directory = whole_run(tiny, examples, **self.patterns)
        older = self.with_asked_patterns(
            drained_at(2, tiny, examples, tmp_path / "a", **self.patterns), **self.patterns
        )
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=older, **self.patterns), tmp_path / "b")
        assert code == 0, log.last
        one, other = final_adapter(whole, whole_directory), final_adapter(log, tmp_path / "b")
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("key", ["k_proj", r"(q)_proj\1"])
    def test_one_with_other_patterns_is_refused_by_name(
        self, tiny: Path, examples: Path, tmp_path: Path, key: str
    ) -> None:
        snapshot = drained_at(2, tiny, examples, tmp_path / "a", **self.patterns)
        older = self.with_asked_patterns(snapshot, rank_pattern={key: 2}, alpha_pattern=self.patterns["alpha_pattern"])
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=older, **self.patterns), tmp_path / "b")
        assert code == ExitCode.BAD_SPEC
        assert "lora.rank_pattern." in failure(log).message

    def test_one_from_when_a_trainer_had_several_runs_resumes_to_the_bit(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        """Its manifest lists the other runs of the trainer; the list is empty for a single run."""
        whole, whole_directory = whole_run(tiny, examples, dropout=0.2)
        older = rewritten(drained_at(2, tiny, examples, tmp_path / "a", dropout=0.2), beside={})
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=older, dropout=0.2), tmp_path / "b")
        assert (code, log.of(Message)) == (0, [])
        one, other = final_adapter(whole, whole_directory), final_adapter(log, tmp_path / "b")
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_plan_field_of_a_newer_version_is_refused(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        newer = rewritten(drained_at(1, tiny, examples, tmp_path / "a"), choices={"warp": 9})
        _, log = run_trainer(float32_spec(tiny, examples, resume_from=newer), tmp_path / "b")
        assert failure(log).reason == Reason.INVALID_SPEC
        assert "its execution plan has warp, which this version does not know" in failure(log).message


class TestDamage:
    """Each kind of damage of each file: a damaged snapshot is never used and always reported."""

    @pytest.fixture
    def two(self, tiny: Path, examples: Path, tmp_path: Path) -> Path:
        """The snapshot directory of a run that was stopped after its third step."""
        drained_at(3, tiny, examples, tmp_path / "a", snapshot_interval_seconds=0)
        snapshots = tmp_path / "a" / "runs" / "run-a" / "snapshots"
        assert [path.name for path in sorted(snapshots.iterdir())] == ["step-000002", "step-000003"]
        return snapshots

    @pytest.mark.extended("every kind of damage; the supervisor's tests have one")
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("name", FILES)
    def test_falls_back_to_the_one_before_with_an_event(
        self, two: Path, tiny: Path, examples: Path, tmp_path: Path, name: str, damage: str
    ) -> None:
        whole, whole_directory = whole_run(tiny, examples)
        DAMAGES[damage](two / "step-000003" / name)
        _, log = run_trainer(float32_spec(tiny, examples, resume_from=two), tmp_path / "b")
        (event,) = log.of(Message)
        assert event.level == "warn"
        assert event.message.startswith("Resuming from the snapshot of step 2; not usable: step-000003: ")
        assert name in event.message
        assert log.of(Started)[0].start_step == 2
        one, other = final_adapter(whole, whole_directory), final_adapter(log, tmp_path / "b")
        assert all(torch.equal(one[key], other[key]) for key in one)

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("name", FILES)
    def test_of_the_named_snapshot_is_refused(
        self, two: Path, tiny: Path, examples: Path, tmp_path: Path, name: str, damage: str
    ) -> None:
        DAMAGES[damage](two / "step-000003" / name)
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=two / "step-000003"), tmp_path / "b")
        assert (code, failure(log).reason) == (ExitCode.INTERNAL, Reason.TRAINER_CRASHED)
        assert name in failure(log).message

    def test_of_both_restarts_with_an_event(self, two: Path, tiny: Path, examples: Path, tmp_path: Path) -> None:
        for snapshot in two.iterdir():
            (snapshot / "state.safetensors").unlink()
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=two), tmp_path / "b")
        assert code == 0
        (event,) = log.of(Message)
        assert event.level == "warn"
        assert event.message.startswith("Starting from step 0: there is no snapshot to resume from; not usable")
        assert event.message.count("state.safetensors is missing") == 2

    def test_of_the_newest_still_leaves_two_valid_snapshots(self, two: Path, tiny: Path, examples: Path) -> None:
        damaged = (two / "step-000003").rename(two / "step-000005")
        (damaged / "state.safetensors").unlink()
        spec = float32_spec(tiny, examples, resume_from=two, snapshot_interval_seconds=0)
        run_trainer(spec, two.parents[2], stop_at=(3, Command.DRAIN))
        assert [path.name for path in sorted(two.iterdir())] == ["step-000002", "step-000003"]
        assert all(artifact_directory.verify(path) for path in two.iterdir())

    def test_a_valid_one_of_another_run_is_refused_and_no_earlier_one_is_tried(
        self, two: Path, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=two, seed=8), tmp_path / "b")
        assert code == ExitCode.BAD_SPEC
        assert "seed was 7 and is 8" in failure(log).message

    def test_a_temporary_directory_left_by_a_crash_is_ignored(
        self, two: Path, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        (two / ".step-000004.staged").mkdir()
        code, log = run_trainer(float32_spec(tiny, examples, resume_from=two), tmp_path / "b")
        assert (code, log.of(Started)[0].start_step, log.of(Message)) == (0, 3, [])


def rewritten(snapshot: Path, **changes: Any) -> Path:
    """Return the snapshot with a changed but valid manifest; `...` removes an entry."""
    about = artifact_directory.verify(snapshot)
    for name, change in changes.items():
        if isinstance(change, dict):
            about[name] = {key: value for key, value in (about.get(name, {}) | change).items() if value is not ...}
        else:
            del about[name]
    del about["seal"]
    artifact_directory.write_manifest(snapshot, about)
    return snapshot


class TestSaveSnapshot:
    def test_it_is_safetensors_and_json_with_a_valid_manifest(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        snapshot = drained_at(1, tiny, examples, tmp_path)
        assert {path.name for path in snapshot.iterdir()} == {"state.safetensors", "MANIFEST.json"}
        manifest = artifact_directory.verify(snapshot)
        assert manifest["step"] == 1
        assert manifest["choices"].pop("peak_bytes") > 0
        assert datetime.fromisoformat(manifest["choices"].pop("rendered_at")) < datetime.now()
        assert manifest["choices"] == {
            "compute_dtype": "float32", "device": f"cpu ({cpu_name()})", "row_tokens": 1024, "threads": 1,
            "recompute": "elementwise", "recompute_layers": 0, "cache_weights": True, "probed": True,
            "out_of_memory_kills": 0, "validation_row_tokens": None, "prompts_at_once": None, "loss_scale": 1.0,
            "cuda_kernels": False, "offload": False,
        }  # fmt: skip

    def test_the_record_names_the_manifests_hash(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        _, log = run_trainer(float32_spec(tiny, examples), tmp_path, stop_at=(1, Command.DRAIN))
        *_, record = log.of(SnapshotSaved)
        assert record.manifest_sha256 == artifact_directory.sha256_file(tmp_path / record.directory / "MANIFEST.json")

    def test_one_is_written_after_each_interval_and_the_last_two_are_kept(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, snapshot_interval_seconds=0), tmp_path)
        assert [record.step for record in log.of(SnapshotSaved)] == [0, 1, 2, 3, 4, 5]
        kept = sorted(path.name for path in (tmp_path / "runs" / "run-a" / "snapshots").iterdir())
        assert kept == ["step-000004", "step-000005"]

    def test_before_the_first_interval_there_is_only_the_plan_without_tensors(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        _, log = run_trainer(float32_spec(tiny, examples, snapshot_interval_seconds=3600), tmp_path)
        (record,) = log.of(SnapshotSaved)
        assert record.step == 0
        assert log.records.index(record) < log.records.index(log.of(Metric)[0])
        assert artifact_directory.verify(tmp_path / record.directory)["files"] == {}

    def test_an_optimizer_without_moments_can_be_saved(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        spec = float32_spec(tiny, examples)
        stops = StopRequests("run-a")
        stops.add(Command.DRAIN)
        log = RecordLog()
        assert run(spec, tmp_path, log, stops) == ExitCode.DRAINED
        assert json.loads((snapshot_of(log, tmp_path) / "MANIFEST.json").read_text())["step"] == 0
        again = float32_spec(tiny, examples, resume_from=snapshot_of(log, tmp_path))
        assert run_trainer(again, tmp_path / "b")[0] == 0
        assert isinstance(log.last, Stopped)
