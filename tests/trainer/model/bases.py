"""Tiny random models of the architectures that people fine-tune, with two decoder layers each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny import write_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 272,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA_4 = {
    "tie_word_embeddings": True,
    "final_logit_softcapping": 5.0,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 272,
    "global_head_dim": 32,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# name -> (kind, class, config). The kinds are what the trainer does differently.
DENSE, SCALED, MULTIMODAL, EXPERTS_KIND, HYBRID = "dense", "scaled", "multimodal", "experts", "hybrid"
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama 3": (DENSE, "LlamaForCausalLM", {}),
    "Mistral": (DENSE, "MistralForCausalLM", {"sliding_window": 8}),
    "Ministral 3": (DENSE, "Ministral3ForCausalLM", {}),
    "Qwen2": (DENSE, "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen3": (DENSE, "Qwen3ForCausalLM", {}),
    "Phi-3": (DENSE, "Phi3ForCausalLM", {}),
    "Phi-4-mini": (
        DENSE,
        "Phi3ForCausalLM",
        {
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 6,
                "long_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 3.0],
                "original_max_position_embeddings": 512,
            },
        },
    ),
    "SmolLM3": (DENSE, "SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}),
    "OLMo 2": (DENSE, "Olmo2ForCausalLM", {}),
    "OLMo 3": (DENSE, "Olmo3ForCausalLM", SLIDING),
    "GLM-4": (DENSE, "Glm4ForCausalLM", {}),
    "EXAONE 4": (DENSE, "Exaone4ForCausalLM", SLIDING),
    "StarCoder2": (DENSE, "Starcoder2ForCausalLM", {}),
    "StableLM": (DENSE, "StableLmForCausalLM", {"use_parallel_residual": True, "qk_layernorm": True}),
    "Nemotron": (DENSE, "NemotronForCausalLM", {}),
    "Gemma": (DENSE, "GemmaForCausalLM", {"tie_word_embeddings": True}),
    "Gemma 3 text": (DENSE, "Gemma3ForCausalLM", SLIDING | {"tie_word_embeddings": True}),
    "Gemma 2": (
        SCALED,
        "Gemma2ForCausalLM",
        SLIDING
        | {
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 16,
        },
    ),
    "Gemma 4 text": (
        SCALED,
        "Gemma4ForCausalLM",
        SLIDING | GEMMA_4 | {"num_kv_shared_layers": 0},
    ),
    "Gemma 4 MoE": (
        SCALED,
        "Gemma4ForCausalLM",
        SLIDING
        | GEMMA_4
        | EXPERTS
        | {
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "top_k_experts": 2,
        },
    ),
    "Gemma 4 text, shared keys": (
        SCALED,
        "Gemma4ForCausalLM",
        GEMMA_4
        | {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Gemma 3n text": (
        SCALED,
        "Gemma3nForCausalLM",
        SLIDING
        | {
            "tie_word_embeddings": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 272,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.5, 0.0],
        },
    ),
    "Cohere": (SCALED, "CohereForCausalLM", {"logit_scale": 2.0, "tie_word_embeddings": True}),
    "Cohere 2": (SCALED, "Cohere2ForCausalLM", SLIDING | {"logit_scale": 2.0, "tie_word_embeddings": True}),
    "Granite": (
        SCALED,
        "GraniteForCausalLM",
        {
            "logits_scaling": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
        },
    ),
    "Granite 4": (
        SCALED,
        "GraniteMoeHybridForCausalLM",
        {
            "logits_scaling": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.5,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
            "layer_types": ["attention", "attention"],
            "mamba_n_heads": 4,
        },
    ),
    "Gemma 3": (MULTIMODAL, "Gemma3ForConditionalGeneration", SLIDING | {"tie_word_embeddings": True}),
    "Gemma 4": (
        MULTIMODAL,
        "Gemma4ForConditionalGeneration",
        SLIDING | GEMMA_4 | {"num_kv_shared_layers": 0},
    ),
    "Qwen3.5-MoE": (
        MULTIMODAL,
        "Qwen3_5MoeForConditionalGeneration",
        EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 64},
    ),
    "Mistral Small 3": (MULTIMODAL, "Mistral3ForConditionalGeneration", {}),
    "Qwen3.5": (MULTIMODAL, "Qwen3_5ForConditionalGeneration", DELTA_NET),
    "Qwen3-MoE": (EXPERTS_KIND, "Qwen3MoeForCausalLM", EXPERTS | {"num_experts": 8}),
    "Mixtral": (EXPERTS_KIND, "MixtralForCausalLM", {"num_local_experts": 4}),
    "OLMoE": (EXPERTS_KIND, "OlmoeForCausalLM", EXPERTS | {"num_experts": 5, "num_experts_per_tok": 1}),
    "gpt-oss": (EXPERTS_KIND, "GptOssForCausalLM", SLIDING | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "Qwen3-Next": (HYBRID, "Qwen3NextForCausalLM", EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 64}),
    "Qwen3.5 text": (HYBRID, "Qwen3_5ForCausalLM", DELTA_NET),
    "LFM2": (
        HYBRID,
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "block_ff_dim": 128, "block_dim": 64, "conv_dim": 64},
    ),
}
REPRESENTATIVES = ("Gemma 2", "Gemma 4 text", "Gemma 3", "gpt-oss", "Qwen3-Next")  # dense models: test_base_model.py


def make_base(name: str, directory: Path) -> Path:
    """Write a random model of this architecture in bfloat16, with the byte-level tokenizer of tests.tiny."""
    _, class_name, changes = BASES[name]
    return make_model(class_name, changes, directory, torch.bfloat16)


def make_model(class_name: str, changes: dict[str, Any], directory: Path, dtype: torch.dtype) -> Path:
    model_class: Any = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(_config(model_class, SIZES | changes)).to(dtype)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" not in key and "A_log" not in key:
                parameter.normal_(0, 0.3)  # biases and sinks start at zero, which hides errors
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def _config(model_class: Any, values: dict[str, Any]) -> Any:
    config_class = model_class.config_class
    if "text_config" not in config_class.sub_configs:
        return config_class(**values)
    vision = VISION | ({"out_hidden_size": 64, "depth": 1, "num_heads": 2} if "qwen" in config_class.model_type else {})
    vision |= {"image_size": 28, "patch_size": 14}
    text = values | ({"model_type": "mistral"} if config_class.model_type == "mistral3" else {})
    return config_class(text_config=text, vision_config=vision, tie_word_embeddings=values["tie_word_embeddings"])
