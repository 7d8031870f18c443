"""The catalog entry of a base model: what "auto", the checks and the plans need to know of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.errors import BadRequest

# As on model hubs, such as Qwen/Qwen3-4B. A colon would be a separator in ft:base:organization:suffix:id.
NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
NAME_RULE = (
    "Allowed: 1 to 128 letters, digits, dots, dashes and underscores, with slashes between parts that start with a "
    "letter or a digit (no colon: it is a separator in ft: names)."
)


IGNORED_LAYERS = frozenset({"lm_head", "embed_tokens", "wte", "wpe"})
MAX_RANK = 256
ALTERED_REASON = "one of its files is missing or has changed since it was registered"

StatSignature = tuple[tuple[str, int, int, int, int], ...]
LENGTH_DEPENDENT_ROPE_TYPES = ("longrope", "dynamic", "su")  # "su": longrope in the first Phi-3 files
LLAMA_EXPONENT, QWEN_EXPONENT = 0.781, 0.0775  # of the learning rate over the hidden size


class CatalogEntry(BaseModel):
    """The properties of a base model. Lengths are in tokens, sizes in bytes, shapes are [out, in].

    Keys that a later release added are ignored: its processes may register models while those of this one still run.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str
    context_length: int
    hidden_size: int
    vocab_size: int
    parameters: int
    size_bytes: int
    # [out, in] of linear layers: the smallest by last name, and each by its full name.
    target_modules: dict[str, tuple[int, int]]
    layers: dict[str, tuple[int, int]] = {}
    whole_modules: tuple[str, ...] = ()  # last names of the modules that can be fully trained: norms, embedding, head
    learning_rate: float  # at multiplier 1, for steps x epochs = 1200 (app/domain/jobs/parameters.py)
    max_auto_batch_size: int = 8
    # For estimates. Zero in entries of older releases: app.services.jobs.plan then reads the directory again.
    decoder_layers: int = 0
    attention_heads: int = 0
    query_size: int = 0  # heads x head size
    key_size: int = 0  # width of the keys, and of the values
    intermediate_size: int = 0
    linear_parameters: int = 0  # of all linear layers except the head: the quantized parameters
    # Bytes per token in 16 bits that a decoder layer keeps besides attention and the adapter, for the degrees of
    # recomputation "nothing" and "elementwise" (worker/trainer/memory/activation_count.py). Counted at registration; by
    # the first job if the model was registered by an earlier release or on a host without torch: empty until then.
    activation_bytes: dict[str, float] = {}
    expert_parameters: int = 0  # of all experts of a mixture of experts: quantized, too, but not cached
    active_experts: float = 1.0  # the share of the experts that a token uses
    has_chat_template: bool
    license: str | None = None
    source: str | None = None  # its id on a hub, such as "Qwen/Qwen3-4B"
    revision: str | None = None  # the commit or tag of that hub
    experts: dict[str, tuple[int, int, int]] = {}  # [experts, out, in] of the stacked weights that can be adapted

    @property
    def can_recompute(self) -> bool:
        """Whether the trainer can compute a layer's activations again in the backward; assumed until it was tried."""
        return not self.activation_bytes or "elementwise" in self.activation_bytes

    @property
    def expert_names(self) -> list[str]:
        """The names that `lora.target_parameters` accepts, such as "mlp.experts.down_proj"."""
        return sorted({".".join(name.split(".")[-3:]) for name in self.experts})


class RefusedModel(BadRequest):
    code = "model_refused"


def unusable_model_message(name: str, reason: str) -> str:
    """The error message for a base model that a job cannot use."""
    return f"The base model {name} cannot be used: {reason}. The operator can register it again: `tunery models add`."


def max_document_tokens(config: Mapping[str, Any]) -> int | None:
    """The maximum number of tokens of one document, from config.json; None if it does not state one.

    The angles of some rotary embeddings change when the longest document of a packed batch exceeds the length of their
    original training: then the other documents of the batch would change the result. Documents stay below that length.
    """
    limits = [config.get("max_position_embeddings")]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if each.get("rope_type", each.get("type")) in LENGTH_DEPENDENT_ROPE_TYPES:
            key = "original_max_position_embeddings"
            limits.append(each.get(key) or config.get(key))
    return min((int(limit) for limit in limits if limit), default=None)


def default_learning_rate(hidden_size: int, architecture: str = "") -> float:
    """The LoRA learning rate for a hidden size: tinker-cookbook's fits, one for Qwen and one for Llama-like models.

    10 x the full fine-tuning rate of 5e-5 ("LoRA Without Regret"), times (2000 / hidden size) to the power of 0.0775
    or 0.781, rounded to the two digits that the fit supports. Llama: 576 -> 1.3e-3, 2048 -> 4.9e-4, 4096 -> 2.9e-4. A
    family without a fit gets Llama's rate, which is the lower one for all but small models.
    """
    exponent = QWEN_EXPONENT if architecture.startswith("Qwen") else LLAMA_EXPONENT
    return float(f"{5e-4 * (2000 / hidden_size) ** exponent:.1e}")


class TrainerReport(BaseModel):
    """Printed by `python -m worker.trainer.model.check_model` as one line of JSON. Shapes are [out, in]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problems: tuple[str, ...] = ()  # clauses; not empty: the model cannot be trained, and the rest is not known
    notes: tuple[str, ...] = ()  # sentences for the operator
    text_config: dict[str, Any] = {}  # config.json's part of the text model, with the defaults of its class
    layers: dict[str, tuple[int, int]] = {}  # that an adapter may have, by full name in the model
    experts: dict[str, tuple[int, int, int]] = {}  # [experts, out, in] of stacked weights, by full name
    whole_modules: tuple[str, ...] = ()  # last names of the modules that can be fully trained
    parameters: int = 0  # of the text model
    linear_parameters: int = 0
    expert_parameters: int = 0
    activation_bytes: dict[str, float] = {}  # as in CatalogEntry
