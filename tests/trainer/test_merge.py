"""A merged model has the weights of base plus adapter, in an ordinary directory; one tensor at a time."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.jobs.states import ExitCode
from app.system import artifact_directory, model_files
from tests.tiny import make_tiny_base
from tests.trainer import plain_peft
from tests.trainer.adapter.test_variants import PATTERNS, VARIANTS, difference
from tests.trainer.helpers import float32_spec, load_tiny_base, run_trainer
from tests.trainer.model.bases import make_base
from worker.trainer import merge as program
from worker.trainer.merge import CannotMerge, merge

TOKENS = [5, 80, 33, 7, 200, 41]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied base in two files, with a licence and a model card."""
    directory = make_tiny_base(tmp_path_factory.mktemp("sharded") / "base", tie_word_embeddings=False)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    parts = {f"model-0000{n}-of-00002.safetensors": sorted(tensors)[n - 1 :: 2] for n in (1, 2)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, directory / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "LICENSE").write_text("as you like")
    (directory / "README.md").write_text("the base")
    return directory


Train = Callable[..., Path]


@pytest.fixture(scope="module")
def trained(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`trained(base, workdir, **changes)`: a copy of the adapter in `workdir`; each request is trained once."""
    adapters: dict[str, Path] = {}

    def train(base: Path, workdir: Path, **changes: Any) -> Path:
        request = f"{base} {changes}"
        if request not in adapters:
            directory = tmp_path_factory.mktemp("trained")
            code, log = run_trainer(float32_spec(base, examples, n_epochs=1, **changes), directory)
            assert code == 0, log.last
            adapters[request] = directory / str(log.last.directory)
        return shutil.copytree(adapters[request], workdir)

    return train


def peft_model(base: Path, adapter: Path) -> Any:
    with plain_peft.quiet():
        return PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
        ).eval()


def logits_of(model: Any) -> torch.Tensor:
    return plain_peft.logits(model, TOKENS)


def merged_logits(directory: Path) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))


class TestMerge:
    def test_a_checkpoint_with_images_is_merged_under_the_names_of_its_files(
        self, trained: Train, tmp_path: Path
    ) -> None:
        base = make_base("Gemma 3", tmp_path / "base")
        adapter = trained(base, tmp_path / "work")
        merge(base, adapter, tmp_path / "merged")
        theirs, ours = logits_of(peft_model(base, adapter)), merged_logits(tmp_path / "merged")
        assert (
            load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
        )
        assert difference(theirs, merged_logits(base)) > 0.05
        assert difference(ours, theirs) < 0.01

    @pytest.mark.parametrize("variant", ["LoRA", "patterns with rsLoRA", "DoRA with a head", "embedding and head"])
    def test_a_merged_model_has_the_tensors_of_pefts_own_merge_rounded_once(
        self, sharded: Path, trained: Train, tmp_path: Path, variant: str
    ) -> None:
        adapter = trained(sharded, tmp_path / "work", **VARIANTS[variant])
        merge(sharded, adapter, tmp_path / "merged")
        with plain_peft.quiet():
            theirs = peft_model(sharded, adapter).merge_and_unload().state_dict()
        found = {}
        for path in (tmp_path / "merged").glob("*.safetensors"):
            found |= load_file(path)
        assert found.keys() == theirs.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.bfloat16
            torch.testing.assert_close(tensor.float(), theirs[name], rtol=2**-8, atol=1e-6)  # half a step of bfloat16

    def test_an_adapter_whose_manifest_has_the_patterns_of_the_request_is_merged(
        self, tiny: Path, trained: Train, tmp_path: Path
    ) -> None:
        adapter = trained(tiny, tmp_path / "work", **PATTERNS)
        merge(tiny, adapter, tmp_path / "merged")
        manifest = artifact_directory.verify(adapter)
        artifact_directory.write_manifest(adapter, manifest | {"lora": manifest["lora"] | PATTERNS})
        merge(tiny, adapter, tmp_path / "older")
        one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "older"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_an_older_pattern_that_cannot_be_matched_is_refused(
        self, tiny: Path, trained: Train, tmp_path: Path
    ) -> None:
        adapter = trained(tiny, tmp_path / "work", **PATTERNS)
        manifest = artifact_directory.verify(adapter)
        artifact_directory.write_manifest(
            adapter, manifest | {"lora": manifest["lora"] | {"rank_pattern": {r"(q)\1": 2}}}
        )
        with pytest.raises(CannotMerge, match=r"lora\.rank_pattern"):
            merge(tiny, adapter, tmp_path / "older")

    def test_a_merged_model_is_an_ordinary_directory_with_the_shards_of_the_base(
        self, sharded: Path, trained: Train, tmp_path: Path
    ) -> None:
        adapter = trained(sharded, tmp_path / "work")
        about = merge(sharded, adapter, tmp_path / "merged")
        merged = tmp_path / "merged"
        names = {path.name for path in sharded.iterdir()}
        assert {path.name for path in merged.iterdir()} == names | {"MANIFEST.json"}
        for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"):
            assert (merged / name).read_bytes() == (sharded / name).read_bytes()
        for path in sharded.glob("*.safetensors"):
            assert load_file(merged / path.name).keys() == load_file(path).keys()
        index = json.loads((merged / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
        assert index["metadata"]["total_size"] == sum(
            tensor.numel() * 2 for path in merged.glob("*.safetensors") for tensor in load_file(path).values()
        )
        assert about["merged"] == {"tensors": 21, "changed": 14}
        assert AutoTokenizer.from_pretrained(merged).chat_template
        merged_entry, base_entry = map(model_files.read_catalog_entry, (merged, sharded))
        assert merged_entry.target_modules == base_entry.target_modules
        assert load_tiny_base(merged).name == "tiny"

    def test_the_manifest_has_the_provenance(self, tiny: Path, trained: Train, tmp_path: Path) -> None:
        adapter = trained(tiny, tmp_path / "work")
        merge(tiny, adapter, tmp_path / "merged")
        manifest = artifact_directory.verify(tmp_path / "merged")
        assert manifest["base_model"]["manifest_sha256"] == model_files.hash_directory(tiny)[1]
        assert manifest["adapter"]["manifest_sha256"] == artifact_directory.sha256_file(adapter / "MANIFEST.json")
        assert manifest["adapter"]["lora"]["r"] == 4
        card = (tmp_path / "merged" / "README.md").read_text()
        assert 'base_model: "tiny"' in card
        assert '"r": 4' in card

    @pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
    def test_a_tied_head_becomes_a_separate_matrix(
        self, tiny: Path, trained: Train, tmp_path: Path, module: str
    ) -> None:
        adapter = trained(tiny, tmp_path / "work", modules_to_save=[module])
        merge(tiny, adapter, tmp_path / "merged")
        found = load_file(tmp_path / "merged" / "model.safetensors")
        before = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
        kept = "model.embed_tokens.weight" if module == "lm_head" else "lm_head.weight"
        assert torch.equal(found[kept], before)
        assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False

    def test_a_merge_keeps_one_tensor_in_memory_at_a_time(
        self, sharded: Path, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = trained(sharded, tmp_path / "work")
        alive: list[weakref.ref[torch.Tensor]] = []
        make = program._MergedWeights.tensor

        def watched(self: Any, name: str) -> torch.Tensor:
            assert not any(reference() is not None for reference in alive)
            tensor = make(self, name)
            alive.append(weakref.ref(tensor))
            return tensor

        monkeypatch.setattr(program._MergedWeights, "tensor", watched)
        merge(sharded, adapter, tmp_path / "merged")
        assert len(alive) == 21


class TestRefusals:
    def test_another_base_is_refused(self, tiny: Path, sharded: Path, trained: Train, tmp_path: Path) -> None:
        adapter = trained(tiny, tmp_path / "work")
        with pytest.raises(CannotMerge, match="base model tiny"):
            merge(sharded, adapter, tmp_path / "merged")
        with pytest.raises(CannotMerge, match="cannot be read"):
            merge(tmp_path / "nowhere", adapter, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_an_altered_adapter_and_an_existing_directory_are_refused(
        self, tiny: Path, trained: Train, tmp_path: Path
    ) -> None:
        adapter = trained(tiny, tmp_path / "work")
        (tmp_path / "merged").mkdir()
        with pytest.raises(CannotMerge, match="exists already"):
            merge(tiny, adapter, tmp_path / "merged")
        (adapter / "adapter_config.json").write_text("{}")
        with pytest.raises(CannotMerge, match=r"damaged.*adapter_config.json"):
            merge(tiny, adapter, tmp_path / "other")

    def test_a_failure_in_the_middle_leaves_nothing(
        self, tiny: Path, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = trained(tiny, tmp_path / "work")
        monkeypatch.setattr(program, "_copy_other_files", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            merge(tiny, adapter, tmp_path / "out" / "merged")
        assert list((tmp_path / "out").iterdir()) == []


class TestProgram:
    def test_the_program_prints_one_line_or_the_reason_of_a_refusal(
        self, tiny: Path, trained: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        adapter = trained(tiny, tmp_path / "work")
        arguments = [str(tiny), str(adapter), str(tmp_path / "merged")]
        capfd.readouterr()
        assert program.main(arguments) == ExitCode.DONE
        assert json.loads(capfd.readouterr().out) == {"directory": arguments[2], "tensors": 20, "changed": 14}
        assert program.main(arguments) == program.main(arguments[:2]) == ExitCode.BAD_SPEC
        said = capfd.readouterr()
        assert said.out == ""
        assert "exists already" in said.err
        assert "BASE_DIR ADAPTER_DIR OUT_DIR" in said.err
