"""What registration refuses, each with its true reason, and all reasons at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from app.domain.base_models.architectures import (
    CHUNKED_ATTENTION,
    ENCODER_DECODER,
    MASKED_TOKENS,
    STATE_SPACE,
    unsupported_reason,
)
from app.domain.base_models.catalog import RefusedModel
from app.system.model_files import read_catalog_entry, with_report
from tests.tiny import CHAT_TEMPLATE, make_tiny_base, write_tokenizer
from tests.trainer.helpers import change_config, change_weights
from tests.trainer.model.bases import SIZES, make_base
from worker.trainer.model import check_model as program
from worker.trainer.model.check_model import check_model

UP = "model.layers.0.mlp.up_proj.weight"
EXPERT = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
UNSUPPORTED = {
    "DeepseekV3": (LATENT | {"first_k_dense_replace": 2}, "multi-head latent attention"),
    "Falcon": ({"new_decoder_architecture": False}, "computes its own attention"),
    "GPT2": ({"n_embd": 64, "n_layer": 2, "n_head": 4}, "transposed convolutions"),
    "Mamba2": ({"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1}, "state-space layers"),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda tensors: tensors.pop(UP), f"are missing: {UP}"),
        (lambda tensors: tensors.update({UP: torch.ones(3, 64)}), f"{UP} [3, 64] instead of [128, 64]"),
        (lambda tensors: tensors.update({UP: torch.ones(128, 64, dtype=torch.int8)}), f"{UP} torch.int8"),
        (lambda tensors: tensors[UP].fill_(torch.inf), f"not finite: {UP}"),
    ],
    ids=["missing", "shape", "dtype", "inf"],
)
def test_a_damaged_tensor_is_named_beside_other_problems(directory: Path, edit: Any, problem: str) -> None:
    change_weights(directory, edit)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["ab"] = 259
    path.write_text(json.dumps(tokenizer))
    of_tensor, of_tokenizer = check_model(directory).problems
    assert problem in of_tensor
    assert "259 rows" in of_tokenizer


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda tensors: tensors.pop(EXPERT), r"experts.down_proj has the shape [3, 64, 128]"),
        (lambda tensors: tensors.update({EXPERT: torch.ones(3, 128)}), "experts.down_proj do not fit together"),
        (lambda tensors: [tensors.pop(key) for key in list(tensors) if ".1.block_sparse_moe.experts" in key],
         "lack 2 of the weights that MixtralForCausalLM needs, such as model.layers.1.mlp.experts"),
    ],
    ids=["missing", "shape", "a layer missing"],
)  # fmt: skip
def test_a_damaged_expert_is_named(tmp_path: Path, edit: Any, problem: str) -> None:
    """The files have each expert by itself, the model has them in one tensor."""
    directory = make_base("Mixtral", tmp_path / "base")
    change_weights(directory, edit)
    assert problem in check_model(directory).problems[0]


def test_a_tensor_in_two_files_is_refused(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({UP: tensors[UP]}, directory / "more.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors") | {UP: "more.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert UP in check_model(directory).problems[0]


def test_an_added_token_without_a_row_is_noted_and_one_that_ends_texts_is_refused(directory: Path) -> None:
    """Gemma 3 has such a token, for images."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|extra|>", special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    report = check_model(directory)
    assert report.problems == ()
    assert '"<|extra|>"' in report.notes[0]
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<|extra|>"}))
    assert '"<|extra|>"' in check_model(directory).problems[0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 0}, "hidden_size 0; only positive integers"),
        ({"num_hidden_layers": "two"}, 'num_hidden_layers "two"; only positive integers'),
        ({"max_position_embeddings": 1}, "a context of 1 token"),
        ({"layer_types": 3}, "layer_types 3; only an array"),
        ({"rope_parameters": [1]}, r"rope_parameters \[1\]; only an object"),
        ({"num_experts": "four"}, 'num_experts "four"; only integers from 0'),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "gives each token 5 experts, but has 4"),
        (
            {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": "4k"}},
            'rope_scaling.original_max_position_embeddings "4k"; only positive integers',
        ),
        (
            {"rope_parameters": {"full_attention": {"original_max_position_embeddings": [64]}}},
            r"rope_parameters.full_attention.original_max_position_embeddings \[64\]; only positive integers",
        ),
    ],
)
def test_sizes_that_no_model_has_are_refused_without_torch(
    directory: Path, changes: dict[str, Any], problem: str
) -> None:
    change_config(directory, **changes)
    with pytest.raises(RefusedModel, match=problem):
        read_catalog_entry(directory)


def test_a_window_of_0_that_is_not_used_is_as_none(directory: Path) -> None:
    """transformers saves a Qwen2-MoE so."""
    change_config(directory, sliding_window=0, use_sliding_window=False)
    assert check_model(directory).problems == ()


@pytest.mark.parametrize("weight_map", [3, {"model.norm.weight": 3}])
def test_an_index_without_file_names_is_refused(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(RefusedModel, match="a file name"):
        read_catalog_entry(directory)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not a JSON object"),
        ("generation_config.json", "3", "generation_config.json is not a JSON object"),
        (
            "chat_template.jinja",
            "{% for message in messages %}",
            "the model's chat template is invalid (Unexpected end",
        ),
        ("chat_template.jinja", "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "chat template"),  # no end
        ("tokenizer_config.json", '{"eos_token": "<other>"}', 'no token "<other>", which ends a text'),
    ],
)
def test_a_damaged_tokenizer_file_is_named(directory: Path, name: str, text: str, problem: str) -> None:
    (directory / name).write_text(text)
    assert problem in check_model(directory).problems[0]


def test_another_class_in_config_json_is_noted(directory: Path) -> None:
    change_config(directory, architectures=["MistralForCausalLM"])
    (note,) = check_model(directory).notes
    assert re.findall(r"\w+ForCausalLM", note) == ["MistralForCausalLM", "LlamaForCausalLM"]


def test_a_refusal_of_transformers_is_shown(directory: Path) -> None:
    change_config(directory, rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4})
    assert "low_freq_factor" in check_model(directory).problems[0]


def test_a_model_for_which_this_machine_is_too_small_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(program, "load_base", fail)
    assert program.main([str(make_tiny_base(tmp_path / "base"))]) == 71
    assert '"problems"' not in capfd.readouterr().out


def test_a_template_without_a_generation_prompt_is_noted(directory: Path) -> None:
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().partition("{% if add_generation_prompt")[0])
    report = check_model(directory)
    assert report.problems == ()
    assert "no generation prompt" in report.notes[0]
    template.write_text(CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>bot"))
    assert "its generation prompt" in check_model(directory).notes[0]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_architecture_that_cannot_be_trained_is_refused_with_the_true_reason(tmp_path: Path, name: str) -> None:
    changes, reason = UNSUPPORTED[name]
    directory = tmp_path / "base"
    model_class = getattr(
        transformers, f"{name.replace('GPT2', 'GPT2LMHead')}Model" if name == "GPT2" else f"{name}ForCausalLM"
    )
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    model_class(model_class.config_class(**sizes | changes)).save_pretrained(directory)
    write_tokenizer(directory)
    assert reason in check_model(directory).problems[0]
    with pytest.raises(RefusedModel, match=reason):  # the same without torch
        read_catalog_entry(directory)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "granitemoehybrid", "layer_types": ["attention", "attention"]}, None),
        ({"model_type": "granitemoehybrid", "layer_types": ["full_attention"]}, None),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]}, STATE_SPACE),
        ({"model_type": "granitemoehybrid", "layer_types": ["linear_attention"]}, STATE_SPACE),
        ({"model_type": "granitemoehybrid"}, STATE_SPACE),
        ({"model_type": "falcon_h1", "layer_types": ["attention"]}, STATE_SPACE),
        ({"model_type": "llama", "layer_types": ["mamba"]}, STATE_SPACE),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention"]}, None),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, MASKED_TOKENS),
        ({"model_type": "t5", "is_encoder_decoder": True}, ENCODER_DECODER),
        ({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}, CHUNKED_ATTENTION),
        ({"model_type": "other", "layer_types": ["chunked_attention"]}, CHUNKED_ATTENTION),
    ],
)
def test_config_json_tells_which_architectures_cannot_be_trained(config: dict[str, Any], reason: str | None) -> None:
    assert unsupported_reason(config) == reason


def test_a_config_with_the_names_of_gpt_is_read(tmp_path: Path) -> None:
    """StarCoder is trained; GPT-J is refused, but not for a missing hidden_size."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 128, "vocab_size": 272}
    for name, changes in (("GPTBigCode", {}), ("GPTJ", {"rotary_dim": 8})):
        model_class = getattr(transformers, f"{name}ForCausalLM")
        model_class(model_class.config_class(**sizes, **changes)).save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
    report, entry = check_model(tmp_path / "GPTBigCode"), read_catalog_entry(tmp_path / "GPTBigCode")
    assert report.problems == ()
    for each in (entry, with_report(entry, report)):
        assert (each.hidden_size, each.decoder_layers, each.attention_heads, each.intermediate_size) == (64, 2, 4, 96)
        assert each.context_length == 128
    assert read_catalog_entry(tmp_path / "GPTJ").hidden_size == 64
    reason = "it adds a bias to its logits, which Tunery does not support yet"
    assert check_model(tmp_path / "GPTJ").problems == (reason,)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_checkpoint_of_another_quantization_is_refused_with_what_to_use(directory: Path, method: str) -> None:
    change_config(directory, quantization_config={"quant_method": method})
    with pytest.raises(RefusedModel, match="in 16 bits"):
        read_catalog_entry(directory)


@pytest.mark.parametrize("name", ["Mixtral", "Gemma 3", "Gemma 4 MoE", "Qwen3-Next"])
def test_routers_convolutions_and_embeddings_are_no_linear_layers(tmp_path: Path, name: str) -> None:
    """Names alone, without torch, give the targets that the trainer's own model has."""
    directory = make_base(name, tmp_path / "base")
    report, entry = check_model(directory), read_catalog_entry(directory)
    assert set(entry.target_modules) == {layer.rpartition(".")[2] for layer in report.layers}
    assert entry.linear_parameters == report.linear_parameters
    assert entry.expert_parameters == report.expert_parameters
    assert min(min(shape) for shape in report.layers.values()) > 4
