from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig

from app.domain.artifacts.engines import compatibility
from app.domain.jobs.events import CheckpointSaved
from app.domain.jobs.spec import LoraSpec
from app.system import artifact_directory
from tests.trainer.helpers import CPU_KERNELS, FLOAT32, RecordLog, make_spec, run_trainer
from worker.trainer.checkpoint import checkpoint
from worker.trainer.checkpoint.checkpoint import staged, write_config
from worker.trainer.model.base_model import load_base


@pytest.fixture(scope="module")
def finished(tiny: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordLog]:
    """Train five epochs in float32; return (work directory, records)."""
    workdir = tmp_path_factory.mktemp("work")
    spec = make_spec(tiny, examples, n_epochs=5, batch_size=6, quantization=FLOAT32, validation_file=examples)
    code, log = run_trainer(spec, workdir)
    assert code == 0, log.last
    return workdir, log


@pytest.fixture
def directory(finished: tuple[Path, RecordLog]) -> Path:
    workdir, log = finished
    return workdir / str(log.last.directory)


class TestSavedCheckpoint:
    def test_it_has_what_peft_writes_the_tokenizer_a_card_and_a_manifest(self, directory: Path) -> None:
        assert {path.name for path in directory.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "tokenizer.json",
            "tokenizer_config.json",
            "README.md",
            "MANIFEST.json",
        }

    def test_the_manifest_is_valid_and_has_the_provenance(self, directory: Path, tiny: Path) -> None:
        manifest = artifact_directory.verify(directory)
        assert manifest["base_model"]["name"] == "tiny"
        assert len(manifest["base_model"]["manifest_sha256"]) == 64
        assert len(manifest["training_file_sha256"]) == 64
        assert manifest["hyperparameters"]["n_epochs"] == 5
        assert manifest["lora"]["r"] == 4
        assert manifest["quantization"]["type"] == "nf4"
        assert manifest["seed"] == 7
        assert {"torch", "transformers", "peft", "bitsandbytes", "python"} <= manifest["versions"].keys()
        assert (manifest["step"], manifest["epoch"]) == (10, 5.0)

    def test_the_manifest_says_which_engines_serve_the_adapter(self, directory: Path) -> None:
        manifest = artifact_directory.verify(directory)
        expected = compatibility(LoraSpec.model_validate(manifest["lora"]), "run-a").model_dump(mode="json")
        assert manifest["compatibility"] == expected
        assert expected["vllm"]["flags"] == ["--enable-lora", "--max-lora-rank", "8"]

    def test_no_file_names_a_path_of_this_machine(self, directory: Path, tiny: Path) -> None:
        for path in directory.iterdir():
            assert str(tiny).encode() not in path.read_bytes()
            assert str(directory).encode() not in path.read_bytes()

    def test_the_config_is_pefts_and_has_the_registered_name_of_the_base(self, directory: Path) -> None:
        config = LoraConfig.from_pretrained(directory)
        assert config.base_model_name_or_path == "tiny"
        assert (config.r, config.lora_alpha, config.bias, config.task_type) == (4, 8, "none", "CAUSAL_LM")

    @pytest.mark.parametrize("source", ["org/tiny", None])
    def test_the_config_has_the_id_and_the_revision_on_a_hub(
        self, tiny: Path, tmp_path: Path, source: str | None
    ) -> None:
        base = load_base("registered", tiny, None, torch.float32, CPU_KERNELS)
        base.source, base.revision = source, source and "v1"
        write_config(tmp_path / "adapter_config.json", LoraSpec(r=4, alpha=8, target_modules=("q_proj",)), base)
        config = LoraConfig.from_pretrained(tmp_path)
        expected = ("org/tiny", "v1") if source else ("registered", None)
        assert (config.base_model_name_or_path, config.revision) == expected

    def test_the_card_starts_with_the_metadata_for_hubs(self, directory: Path) -> None:
        text = (directory / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n")[1])
        assert (front["base_model"], front["library_name"]) == ("tiny", "peft")
        assert '"learning_rate": 0.01' in text

    def test_the_same_run_writes_the_same_bytes(
        self, finished: tuple[Path, RecordLog], tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = make_spec(tiny, examples, n_epochs=5, batch_size=6, quantization=FLOAT32, validation_file=examples)
        _, log = run_trainer(spec, tmp_path)
        one, other = (artifact_directory.read_manifest(where / log.last.directory) for where in (finished[0], tmp_path))
        assert json.dumps(one) == json.dumps(other)


class TestCheckpoints:
    def test_there_is_one_per_epoch_and_the_last_is_final(self, finished: tuple[Path, RecordLog]) -> None:
        saved = finished[1].of(CheckpointSaved)
        assert [(record.step, record.epoch, record.final) for record in saved] == [
            (2, 1.0, False), (4, 2.0, False), (6, 3.0, False), (8, 4.0, False), (10, 5.0, True),
        ]  # fmt: skip

    def test_each_has_its_losses(self, finished: tuple[Path, RecordLog]) -> None:
        for record in finished[1].of(CheckpointSaved):
            assert record.metrics["train_loss"] > 0
            assert record.metrics["full_valid_loss"] > 0
            assert record.metrics["full_valid_mean_token_accuracy"] is not None


class TestStaged:
    def test_a_directory_is_complete_or_absent(self, tmp_path: Path) -> None:
        def fail_half_way() -> None:
            with staged(tmp_path, 1, keep=3) as directory:
                (directory / "half").write_text("x")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_half_way()
        assert list(tmp_path.iterdir()) == []

    def test_one_of_the_same_step_exists_until_it_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(text: str) -> None:
            with staged(tmp_path, 1, keep=3) as directory:
                (directory / "file").write_text(text)

        def fail(*_: Path) -> None:
            raise OSError("no space left on device")

        write("old")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "publish", fail)
            with pytest.raises(OSError, match="no space"):
                write("new")
        assert (tmp_path / "step-000001" / "file").read_text() == "old"
        write("new")
        assert (tmp_path / "step-000001" / "file").read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]

    def test_directories_left_by_a_crash_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / ".step-000001.staged").mkdir()
        (tmp_path / ".step-000001.staged" / "old").write_text("x")
        with staged(tmp_path, 1, keep=3) as directory:
            (directory / "new").write_text("x")
        assert [path.name for path in (tmp_path / "step-000001").iterdir()] == ["new"]
