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


REFUSED = {
    **{name: ({name: b"x"}, f"{name} is refused") for name in ("pytorch_model.bin", "modeling_x.py", "t.pt", "x.pkl")},
    **{
        f"weights {content!r}": ({"model.safetensors": content}, "a safetensors file")
        for content in (b"", b"short", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00[}")
    },
    "an index without files": ({model_files.INDEX: b"{}"}, "no weight file"),
    "an index with a file that never came": (
        {model_files.INDEX: b'{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}'},
        r": two\.safetensors is",
    ),
    **{key: ({"config.json": {key: "someone/kernel"}}, key) for key in model_files.FORBIDDEN_CONFIG_KEYS},
}


@pytest.mark.parametrize(("changes", "problem"), REFUSED.values(), ids=REFUSED)
def test_files_that_are_broken_incomplete_or_load_code_are_refused_by_name(
    base: Path, changes: dict[str, bytes | dict[str, str]], problem: str
) -> None:
    for name, change in changes.items():
        if isinstance(change, dict):
            change = json.dumps(json.loads((base / name).read_text()) | change).encode()
        (base / name).write_bytes(change)
    with pytest.raises(catalog.RefusedModel, match=problem):
        model_files.read_catalog_entry(base)


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(catalog.RefusedModel) as caught:
        model_files.read_catalog_entry(tmp_path)
    assert caught.value.code == "model_refused"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "safetensors"):
        assert name in caught.value.message


def test_weights_cut_short_are_refused(base: Path) -> None:
    path = base / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(catalog.RefusedModel, match=f"{size - 1000:,} bytes, but {size:,} "):
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
