"""Registering a base model: its catalog entry, refusals, hashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.domain.base_models import catalog
from app.system import model_files
from tests.tiny import make_tiny_base


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "base")


def test_a_model_directory_is_described_without_loading_it(base: Path, tmp_path: Path) -> None:
    entry = model_files.read_catalog_entry(base)
    assert entry.context_length == 512
    assert entry.hidden_size == 64
    assert entry.vocab_size == 259
    assert entry.has_chat_template
    assert set(entry.target_modules) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert entry.target_modules["down_proj"] == (64, 128)
    untied = model_files.read_catalog_entry(make_tiny_base(tmp_path / "untied", tie_word_embeddings=False))
    assert untied.target_modules.keys() == entry.target_modules.keys()


def test_every_linear_layer_is_known_by_its_full_name_and_what_can_be_trained_whole_by_its_last(base: Path) -> None:
    entry = model_files.read_catalog_entry(base)
    assert len(entry.layers) == 14
    assert entry.layers["model.layers.1.mlp.down_proj"] == (64, 128)
    assert entry.whole_modules == ("embed_tokens", "input_layernorm", "lm_head", "norm", "post_attention_layernorm")


def test_thousands_of_layers_are_left_to_the_trainer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MAX_LISTED_LAYERS", 13)
    entry = model_files.read_catalog_entry(base)
    assert entry.layers == {}
    assert len(entry.target_modules) == 7


def test_the_learning_rate_is_the_operators_or_that_of_the_architecture(base: Path, tmp_path: Path) -> None:
    assert model_files.read_catalog_entry(base, learning_rate=1e-2).learning_rate == 1e-2
    qwen = make_tiny_base(tmp_path / "qwen", architectures=["Qwen3ForCausalLM"])
    assert model_files.read_catalog_entry(qwen).learning_rate == 6.5e-4


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "training_args.pt", "x.pkl"])
def test_pickles_and_code_are_refused_by_name(base: Path, name: str) -> None:
    (base / name).write_bytes(b"x")
    with pytest.raises(catalog.RefusedModel, match=f"{name} is refused"):
        model_files.read_catalog_entry(base)


@pytest.mark.parametrize("key", model_files.FORBIDDEN_CONFIG_KEYS)
def test_a_config_that_loads_code_is_refused(base: Path, key: str) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: "someone/kernel"}))
    with pytest.raises(catalog.RefusedModel, match=key):
        model_files.read_catalog_entry(base)


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(catalog.RefusedModel) as caught:
        model_files.read_catalog_entry(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "safetensors"):
        assert name in caught.value.message


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00[}"])
def test_a_broken_weight_file_is_refused(base: Path, content: bytes) -> None:
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(catalog.RefusedModel, match="a safetensors file"):
        model_files.read_catalog_entry(base)


def test_weights_cut_short_are_refused(base: Path) -> None:
    path = base / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(catalog.RefusedModel, match=f"{size - 1000:,} bytes, but {size:,} "):
        model_files.read_catalog_entry(base)


def test_a_file_that_the_index_names_and_that_never_came_is_named(base: Path) -> None:
    (base / "model.safetensors").rename(base / "one.safetensors")
    (base / model_files.INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(catalog.RefusedModel, match=r": two\.safetensors is"):
        model_files.read_catalog_entry(base)


def test_an_index_that_names_no_file_is_refused(base: Path) -> None:
    (base / model_files.INDEX).write_text("{}")
    with pytest.raises(catalog.RefusedModel, match="no weight file"):
        model_files.read_catalog_entry(base)


def test_weights_in_another_form_beside_those_that_are_loaded_do_not_count(base: Path) -> None:
    """Mistral's directories have consolidated.safetensors, with other names, beside what transformers reads."""
    before = model_files.read_catalog_entry(base)
    (base / "consolidated.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert model_files.read_catalog_entry(base) == before


def test_the_hash_of_a_directory_depends_on_its_files_and_not_on_its_place(base: Path, tmp_path: Path) -> None:
    before = model_files.hash_directory(base)
    assert model_files.hash_directory(make_tiny_base(tmp_path / "elsewhere")) == before
    (base / "tokenizer_config.json").write_text("{}")
    assert model_files.hash_directory(base)[1] != before[1]
