"""The architecture of a base model: the transformers class that is loaded, and which of its modules are trained.

A checkpoint with images or sound is trained by its text path. Its model keeps the class that transformers and vLLM
load, so the adapter's keys have that class's names; the modules of the other modalities are removed before any weight
is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from app.domain.base_models.architectures import is_target_name, unsupported_reason
from worker.trainer.model import experts
from worker.trainer.model.attention import attention
from worker.trainer.objective.losses import LogitScaling
from worker.trainer.runtime.failures import is_out_of_memory


class UnsupportedBase(Exception):
    """The message is a clause that says why the base model cannot be trained: "it uses ..."."""


def read_config(directory: Path) -> Any:
    """Return transformers' config of a model directory. Raises UnsupportedBase."""
    raw = json.loads((directory / "config.json").read_bytes())
    if reason := unsupported_reason(raw):
        raise UnsupportedBase(reason)
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        kind = raw.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise UnsupportedBase(f"transformers does not support its config.json (model_type {kind!r})") from error
        raise UnsupportedBase(f"transformers refuses its config.json ({_one_line(error)})") from error


def meta_model(config: Any, compute_dtype: torch.dtype) -> Any:
    """Return the model without weights (on the device `meta`), but with the buffers, which no file contains.

    Raises UnsupportedBase.
    """
    model_class = _model_class(config)
    if not model_class._can_set_attn_implementation():
        raise UnsupportedBase(f"{model_class.__name__} computes attention in a way that Tunery cannot replace")
    try:
        with init_empty_weights(include_buffers=False):
            model = model_class._from_config(
                config,
                dtype=compute_dtype,
                attn_implementation=attention.NAME,
                experts_implementation=experts.NAME,
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedBase(f"transformers cannot make a model from its config.json ({_one_line(error)})") from error
    if model.get_output_embeddings() is None:
        raise UnsupportedBase(f"{model_class.__name__} has no language model head")
    return model


def remove_other_modalities(model: Any) -> set[str]:
    """Remove the modules that neither the text decoder nor the head contains; return their full names."""
    kept = {id(module) for part in (model.get_decoder(), model.get_output_embeddings()) for module in part.modules()}
    removed: set[str] = set()
    for name, module in list(model.named_modules()):
        is_inside = any(name.startswith(f"{each}.") for each in removed)
        if name and not is_inside and not any(id(each) in kept for each in module.modules()):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, None)
            removed.add(name)
    return removed


def linear_names(model: Any) -> list[str]:
    """Return the names of all linear layers except the head, routers, gates and those without a name."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and is_target_name(name)
    ]


def adaptable_names(model: Any) -> list[str]:
    """Return the names of the linear layers that an adapter in PEFT's format can name.

    In some mixtures of experts PEFT takes the names of a shared expert's layers for those of all experts.
    """
    model_type = model.config.model_type
    if not get_checkpoint_conversion_mapping(model_type):
        return linear_names(model)
    # Imported here: PEFT takes 1.5 s of processor time, and programs that write no adapter need none of it.
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING

    taken = _MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(model_type, ""), {})
    return [name for name in linear_names(model) if name.rpartition(".")[2] not in taken]


def carries_state(text_config: Any) -> bool:
    """Return whether some layers carry state from token to token, as Gated DeltaNet and short convolutions do."""
    kinds = set(getattr(text_config, "layer_types", None) or ())
    return any(kind == "linear_attention" or not kind.endswith("attention") for kind in kinds)


def logit_scaling(text_config: Any) -> LogitScaling:
    """Return how the model scales and caps its logits."""
    factor = float(getattr(text_config, "logit_scale", None) or getattr(text_config, "lm_head_multiplier", None) or 1)
    factor /= float(getattr(text_config, "logits_scaling", None) or 1)
    return LogitScaling(factor, getattr(text_config, "final_logit_softcapping", None))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _model_class(config: Any) -> Any:
    """Return the class that `architectures` names for a checkpoint with other modalities, else transformers' choice."""
    try:
        text = config.get_text_config()
    except ValueError as error:
        raise UnsupportedBase(f"it has more than one text model (model_type {config.model_type!r})") from error
    if text is not config:
        named: Any = getattr(transformers, (config.architectures or [""])[0], None)
        if named is not None:
            return named
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    kind = config.model_type
    raise UnsupportedBase(f"transformers has no causal language model of its type (model_type {kind!r})")
