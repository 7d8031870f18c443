"""Which architectures can be trained, and which parts of a checkpoint are what, from names alone: without torch.

The trainer's own check, which has the model, decides (worker/trainer/model/check_model.py). These rules are for hosts
without torch, and for refusals that need no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Linear layers that choose experts, or scale heads with one number each: too narrow for an adapter, and not adapted.
# So are the mixing coefficients of Gemma 3n's parallel residual streams (AltUp).
GATES = frozenset({"gate", "router", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba"}) | frozenset(
    {"modality_router", "prediction_coefs", "correction_coefs"}
)
HEADS = frozenset({"lm_head", "embed_out"})
EMBEDDINGS = re.compile(r"embed|^wte$|^wpe$")  # of the last name of a module
OTHER_MODALITIES = re.compile(r"(^|\.)(vision|visual|audio|image|multi_?modal|mm_|embed_vision|embed_audio)\w*\.")
EXPERTS = re.compile(r"\.experts\.")
EXPERT_LAYER = re.compile(r"\.experts\.\d+\.(\w+)\.weight$")

LATENT_ATTENTION = "it uses multi-head latent attention, whose keys and values have different sizes"
STATE_SPACE = "it has state-space layers (Mamba)"
CHUNKED_ATTENTION = "it uses chunked attention (Llama 4)"
ENCODER_DECODER = "it is an encoder with a decoder; only decoders are trained"
MASKED_TOKENS = "it is an encoder that predicts masked tokens; only models that predict the next token are trained"
# What cannot be trained yet, by the model_type of config.json.
UNSUPPORTED_TYPES = {
    "falcon": "transformers' Falcon computes its own attention, which cannot be replaced",
    "bloom": "transformers' Bloom computes its own attention with ALiBi, which cannot be replaced",
    "mpt": "transformers' MPT computes its own attention with ALiBi, which cannot be replaced",
    "gpt2": "GPT-2 stores its layers as transposed convolutions (Conv1D), not as linear layers",
    "rwkv": "it is a recurrent network (RWKV)",
    "llama4": CHUNKED_ATTENTION,
    "llama4_text": CHUNKED_ATTENTION,
}
STATE_SPACE_TYPES = re.compile(r"mamba|jamba|bamba|zamba|falcon_h1|nemotron_h|granitemoehybrid|recurrent_gemma")
# These have such layers only where `layer_types` says so: Granite 4.0 micro, 1B and 350M have none.
OPTIONAL_STATE_SPACE_TYPES = ("granitemoehybrid",)
ATTENTION_LAYERS = ("attention", "full_attention")
# Names of GPT-2 and its successors, of Bloom, and of T5 and XGLM.
OTHER_NAMES = {
    "d_model": "hidden_size",
    "n_embed": "hidden_size",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
# Checkpoints of other quantization methods: `quant_method` of config.json -> what to do instead.
DEQUANTIZED_METHODS = frozenset({"mxfp4", "fp8"})  # registration converts these
METHOD_NAMES = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "llm-compressor"}


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the text model, under the names that most architectures use.

    A checkpoint with images has such a part for each modality.
    """
    nested = config.get("text_config") or config.get("llm_config")
    text = nested if isinstance(nested, Mapping) else config
    others = {name: text[other] for other, name in OTHER_NAMES.items() if other in text and name not in text}
    return {**text, **others}


def unsupported_reason(config: Mapping[str, Any]) -> str | None:
    """Why this architecture cannot be trained, as a clause; None if config.json does not rule it out."""
    text = text_config(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    layer_types = text.get("layer_types") or text.get("layers_block_type")
    layers = layer_types if isinstance(layer_types, list) else []
    has_attention_only = bool(layers) and all(layer in ATTENTION_LAYERS for layer in layers)
    if "ForMaskedLM" in str(config.get("architectures")):
        return MASKED_TOKENS
    if config.get("is_encoder_decoder"):
        return ENCODER_DECODER
    if text.get("kv_lora_rank"):
        return LATENT_ATTENTION
    if "chunked_attention" in layers:
        return CHUNKED_ATTENTION
    if kind in OPTIONAL_STATE_SPACE_TYPES and has_attention_only:
        return None
    if STATE_SPACE_TYPES.search(kind) or "mamba" in layers:
        return STATE_SPACE
    return UNSUPPORTED_TYPES.get(kind)


def quantization_problem(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint that is quantized already is refused, and what to use instead; None for any other."""
    method = quantization_method(config)
    if method is None or method in DEQUANTIZED_METHODS:
        return None
    return (
        f"its weights are quantized with {METHOD_NAMES.get(method, method)}, which cannot be trained. Register the "
        "original checkpoint in 16 bits: Tunery quantizes it itself, to 4 bits by default"
    )


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """The `quant_method` of a checkpoint that is quantized, such as "mxfp4"; None for one in 16 bits."""
    quantization = config.get("quantization_config") or text_config(config).get("quantization_config")
    return str(quantization.get("quant_method", "unknown")).lower() if isinstance(quantization, Mapping) else None


def names_of_experts(tensors: Iterable[str]) -> set[str]:
    """The last names of the layers of single experts, such as gate_proj.

    PEFT takes these names for the stacked weights of all experts, so an adapter cannot have another layer of that name,
    such as one of a shared expert.
    """
    return {match.group(1) for name in tensors if (match := EXPERT_LAYER.search(name))}


def is_target_name(layer: str) -> bool:
    """Whether a linear layer of this full name is a target: no router, nor a part of one.

    PEFT takes last names: a number would also be that of a decoder layer.
    """
    names = layer.split(".")
    return not GATES.intersection(names) and not names[-1].isdigit()


def is_linear(tensor: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this name is the weight of a linear layer that an adapter may have.

    Excluded are the head, embeddings, routers, experts, convolutions and the layers of other modalities.
    """
    layer, _, parameter = tensor.rpartition(".")
    last = layer.rpartition(".")[2]
    return (
        parameter == "weight"
        and len(shape) == 2
        and is_target_name(layer)
        and last not in HEADS
        and not EMBEDDINGS.search(last)
        and not EXPERTS.search(tensor)
        and not OTHER_MODALITIES.search(tensor)
    )
