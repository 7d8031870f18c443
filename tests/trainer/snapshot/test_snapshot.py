from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.events import Command, Message, Metric, SnapshotSaved, Started
from app.domain.jobs.states import ExitCode, Reason
from app.system import artifact_directory
from app.system.host import cpu_name
from tests.damages import DAMAGES
from tests.tiny import CHAT_TEMPLATE, make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import Attempt, Trainings, assert_same_adapter

FILES = ("state.safetensors", "MANIFEST.json")
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\..*(up|down)_proj": 6},
    "alpha_pattern": {"v_proj": 3, "model.layers.0.mlp.down_proj": 1.5},
}


ATTEMPTS: dict[str, Attempt] = {}  # by their arguments


def made_once(train: Trainings, **arguments: Any) -> Attempt:
    key = repr((train.base, train.training_file, arguments))
    if key not in ATTEMPTS:
        ATTEMPTS[key] = train(train.training_file.parent / f"made-{len(ATTEMPTS)}", **arguments)
    return ATTEMPTS[key]


def drained_at(step: int, train: Trainings, **changes: Any) -> Path:
    """Return the snapshot of a run that was drained at this step, in a copy of its directory."""
    attempt = made_once(train, stop_at=(step, Command.DRAIN), **changes)
    assert attempt.code == ExitCode.DRAINED
    copy = shutil.copytree(attempt.workdir, train.directory / "drained")
    return copy / attempt.snapshot.relative_to(attempt.workdir)


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


class TestResume:
    @pytest.mark.parametrize(
        ("changed", "change"),
        [
            ("worker.trainer.checkpoint.provenance.version", "-> 9.9"),
            ("worker.trainer.runtime.device.cpu_name", "-> cpu (9.9)"),
        ],
    )
    def test_another_library_or_processor_causes_a_warning(
        self, train: Trainings, monkeypatch: pytest.MonkeyPatch, changed: str, change: str
    ) -> None:
        snapshot = drained_at(2, train)
        monkeypatch.setattr(changed, lambda *_: "9.9")
        log = train(resume_from=snapshot)
        assert log.code == ExitCode.DONE
        assert log.warnings == log.of(Message)
        assert change in log.warnings[0].message

    @pytest.mark.parametrize(("dropout", "effect"), [(0.0, "rounding"), (0.2, "dropout masks differ")])
    def test_a_snapshot_of_a_gpu_seeds_the_generator_of_a_cpu_again(
        self, train: Trainings, dropout: float, effect: str
    ) -> None:
        snapshot = drained_at(2, train, dropout=dropout)
        manifest, state = artifact_directory.verify(snapshot), load_file(snapshot / "state.safetensors")
        save_file(state | {"random/dropout": torch.zeros(16, dtype=torch.uint8)}, snapshot / "state.safetensors")
        manifest["choices"]["device"] = "cuda (NVIDIA H100)"
        artifact_directory.write_manifest(snapshot, manifest)
        log = train(resume_from=snapshot, dropout=dropout)
        assert log.code == ExitCode.DONE
        assert effect in log.warnings[0].message
        assert (log.losses == made_once(train, dropout=dropout).losses[2:]) == (not dropout)

    def test_another_number_of_processes_causes_a_warning(self, train: Trainings) -> None:
        snapshot = rewritten(drained_at(1, train, dropout=0.2), identity={"world_size": 2})
        log = train(resume_from=snapshot, dropout=0.2)
        assert log.code == ExitCode.DONE
        (message,) = (each.message for each in log.of(Message) if "processes 2 -> 1" in each.message)
        assert "dropout masks differ" in message

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"learning_rate": 0.02}, "hyperparameters.learning_rate"),
            ({"r": 2}, "lora.r"),
            ({"seed": 8}, "seed was 7"),
            ({"quantization": {"type": "fp4"}}, "quantization.type"),
        ],
    )
    def test_a_changed_configuration_is_refused_by_name(
        self, train: Trainings, changes: dict[str, Any], named: str
    ) -> None:
        log = train(resume_from=drained_at(1, train), **changes)
        assert (log.code, log.failure.reason) == (ExitCode.BAD_SPEC, Reason.INVALID_SPEC)
        assert named in log.failure.message

    @pytest.mark.parametrize("name", ["training_file", "validation_file"])
    def test_changed_data_is_refused_by_name(self, train: Trainings, tmp_path: Path, name: str) -> None:
        snapshot = drained_at(1, train, validation_file=train.training_file)
        other = make_tiny_dataset(tmp_path / "other.jsonl", 12, seed=5)
        log = train(resume_from=snapshot, **{"validation_file": train.training_file, name: other})
        assert f"{name}_sha256" in log.failure.message

    def test_another_tokenizer_or_base_is_refused_by_name(self, train: Trainings, tmp_path: Path) -> None:
        base = make_tiny_base(tmp_path / "base")
        snapshot = drained_at(1, train, base=base)
        (base / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("\\n", " "))
        log = train(resume_from=snapshot, base=base)
        assert "tokenizer_sha256.chat_template.jinja" in log.failure.message
        log = train(resume_from=snapshot, base=make_tiny_base(tmp_path / "other", seed=1))
        assert "base_model.manifest_sha256" in log.failure.message
        assert "tokenizer" not in log.failure.message

    @pytest.mark.parametrize(
        ("changes", "older"),
        [
            ({}, {"identity": {"hyperparameters.promote_best": ..., "lora.use_dora": ...}, "best": ...}),
            ({"dropout": 0.2}, {"beside": {}}),  # the list of other runs, when a trainer had several
        ],
    )
    def test_a_snapshot_of_an_earlier_release_is_resumed_to_the_bit(
        self, train: Trainings, changes: dict[str, Any], older: dict[str, Any]
    ) -> None:
        log = train(resume_from=rewritten(drained_at(2, train, **changes), **older), **changes)
        assert (log.code, log.of(Message)) == (ExitCode.DONE, [])
        assert_same_adapter(log, made_once(train, **changes))

    def test_a_snapshot_with_other_patterns_is_refused_by_name(self, train: Trainings) -> None:
        older = rewritten(drained_at(2, train, **PATTERNS), identity={"lora.rank_pattern.k_proj": 2})
        log = train(resume_from=older, **PATTERNS)
        assert log.code == ExitCode.BAD_SPEC
        assert "lora.rank_pattern.k_proj" in log.failure.message

    def test_a_plan_field_of_a_newer_version_is_refused(self, train: Trainings) -> None:
        log = train(resume_from=rewritten(drained_at(1, train), choices={"warp": 9}))
        assert log.failure.reason == Reason.INVALID_SPEC
        assert "warp" in log.failure.message


class TestDamage:
    """Each kind of damage of each file: a damaged snapshot is never used and always reported."""

    @pytest.fixture
    def two(self, train: Trainings) -> Path:
        """The snapshot directory of a run that was stopped after its third step."""
        snapshots = drained_at(3, train, snapshot_interval_seconds=0).parent
        assert [path.name for path in sorted(snapshots.iterdir())] == ["step-000002", "step-000003"]
        return snapshots

    @pytest.mark.extended("every kind of damage; the supervisor's tests have one")
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("name", FILES)
    def test_a_damaged_snapshot_is_replaced_by_the_one_before(
        self, two: Path, train: Trainings, name: str, damage: str
    ) -> None:
        DAMAGES[damage](two / "step-000003" / name)
        log = train(resume_from=two)
        (event,) = log.warnings
        assert "step-000003" in event.message
        assert name in event.message
        assert log.of(Started)[0].start_step == 2
        assert_same_adapter(log, made_once(train))

    @pytest.mark.parametrize("name", FILES)
    def test_a_damaged_snapshot_that_is_named_is_refused(self, two: Path, train: Trainings, name: str) -> None:
        DAMAGES["flipped"](two / "step-000003" / name)
        log = train(resume_from=two / "step-000003")
        assert (log.code, log.failure.reason) == (ExitCode.INTERNAL, Reason.TRAINER_CRASHED)
        assert name in log.failure.message

    def test_two_damaged_snapshots_restart_the_run_with_an_event(self, two: Path, train: Trainings) -> None:
        for snapshot in two.iterdir():
            (snapshot / "state.safetensors").unlink()
        log = train(resume_from=two)
        assert (log.code, log.of(Started)[0].start_step) == (ExitCode.DONE, 0)
        (event,) = log.warnings
        assert event.message.count("state.safetensors") == 2

    def test_a_damaged_newest_snapshot_leaves_two_valid_ones(self, two: Path, train: Trainings) -> None:
        damaged = (two / "step-000003").rename(two / "step-000005")
        (damaged / "state.safetensors").unlink()
        train(two.parents[2], resume_from=two, snapshot_interval_seconds=0, stop_at=(3, Command.DRAIN))
        assert [path.name for path in sorted(two.iterdir())] == ["step-000002", "step-000003"]
        assert all(artifact_directory.verify(path) for path in two.iterdir())

    def test_a_valid_snapshot_of_another_run_is_refused_and_no_earlier_one_is_tried(
        self, two: Path, train: Trainings
    ) -> None:
        log = train(resume_from=two, seed=8)
        assert log.code == ExitCode.BAD_SPEC
        assert "seed was 7" in log.failure.message

    def test_a_temporary_directory_left_by_a_crash_is_ignored(self, two: Path, train: Trainings) -> None:
        (two / ".step-000004.staged").mkdir()
        log = train(resume_from=two)
        assert (log.code, log.of(Started)[0].start_step, log.of(Message)) == (0, 3, [])


class TestSaveSnapshot:
    def test_a_snapshot_is_safetensors_and_json_with_a_valid_manifest(self, train: Trainings) -> None:
        snapshot = drained_at(1, train)
        assert {path.name for path in snapshot.iterdir()} == {"state.safetensors", "MANIFEST.json"}
        manifest = artifact_directory.verify(snapshot)
        assert manifest["step"] == 1
        assert manifest["choices"].pop("peak_bytes") > 0
        assert datetime.fromisoformat(manifest["choices"].pop("rendered_at")) < datetime.now()
        assert manifest["choices"] == {
            "compute_dtype": "float32", "device": f"cpu ({cpu_name()})", "row_tokens": 1024, "threads": 1,
            "recompute": "elementwise", "recompute_layers": 0, "cache_weights": True, "probed": True,
            "out_of_memory_kills": 0, "validation_row_tokens": None, "prompts_at_once": None, "loss_scale": 1.0,
            "cuda_kernels": False, "offload": False, "mlp_chunk_tokens": 0,
        }  # fmt: skip
        record = made_once(train, stop_at=(1, Command.DRAIN)).of(SnapshotSaved)[-1]
        assert record.manifest_sha256 == artifact_directory.sha256_file(snapshot / "MANIFEST.json")

    def test_a_snapshot_is_written_after_each_interval_and_the_last_two_are_kept(self, train: Trainings) -> None:
        log = train(snapshot_interval_seconds=0)
        assert [record.step for record in log.of(SnapshotSaved)] == [0, 1, 2, 3, 4, 5]
        kept = sorted(path.name for path in (log.workdir / "runs" / "run-a" / "snapshots").iterdir())
        assert kept == ["step-000004", "step-000005"]

    def test_before_the_first_interval_there_is_only_the_plan_without_tensors(self, train: Trainings) -> None:
        log = train(snapshot_interval_seconds=3600)
        (record,) = log.of(SnapshotSaved)
        assert record.step == 0
        assert log.records.index(record) < log.records.index(log.of(Metric)[0])
        assert artifact_directory.verify(log.snapshot)["files"] == {}

    def test_an_optimizer_without_moments_can_be_saved(self, train: Trainings) -> None:
        log = train(stop_at=(0, Command.DRAIN))
        assert (log.code, log.last.kind, log.last.step) == (ExitCode.DRAINED, "stopped", 0)
        assert artifact_directory.verify(log.snapshot)["step"] == 0
        assert train(resume_from=log.snapshot).code == ExitCode.DONE
