"""The catalog entry of a base model: what "auto", the checks and the plans need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.errors import BadRequest

IGNORED_LAYERS = frozenset({"lm_head", "embed_tokens", "wte", "wpe"})
MAX_RANK = 256
ALTERED = "a file of it is missing or was altered since it was registered"

Signature = tuple[tuple[str, int, int, int, int], ...]
ROPE_OF_THE_ROW = ("longrope", "dynamic", "su")  # "su": longrope in the first Phi-3 files
LLAMA_EXPONENT, QWEN_EXPONENT = 0.781, 0.0775  # of the learning rate over the hidden size


class CatalogEntry(BaseModel):
    """What Tunery knows of a base model. Lengths are in tokens, sizes in bytes, shapes are [out, in]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    context_length: int
    hidden_size: int
    vocab_size: int
    parameters: int
    size_bytes: int
    target_modules: dict[str, tuple[int, int]]  # linear layer name -> its smallest [out, in]
    layers: dict[str, tuple[int, int]] = {}  # full name of each of them -> [out, in]; what patterns are matched with
    whole_modules: tuple[str, ...] = ()  # what can be trained whole, by last name: norms, the embedding, the head
    learning_rate: float  # at multiplier 1, for steps x epochs = 1200 (app/domain/jobs/auto_hyperparameters.py)
    max_auto_batch_size: int = 8
    # What a plan reckons with. Zero in entries of before: app.services.jobs.plan then reads the directory again.
    decoder_layers: int = 0
    attention_heads: int = 0
    query_size: int = 0  # heads x head size
    key_size: int = 0  # of keys, and as much of values
    intermediate_size: int = 0
    linear_parameters: int = 0  # of every linear layer but the head: what is quantised
    has_chat_template: bool
    license: str | None = None


class RefusedModel(BadRequest):
    code = "model_refused"


def unusable(name: str, why: str) -> str:
    """What a user is told of a base model that a job cannot have, whoever finds out: what is wrong, and what to do."""
    return f"The base model {name} cannot be used: {why}. Its operator can register it anew with `tunery models add`."


def longest_document(config: Mapping[str, Any]) -> int | None:
    """How many tokens of one document the model of this config.json reads; None if it does not say.

    Some rotary embeddings turn by other angles once the longest document of a row passes the length of their original
    training: what shares a row would change the result. Up to that length they are like all others.
    """
    limits = [config.get("max_position_embeddings")]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if each.get("rope_type", each.get("type")) in ROPE_OF_THE_ROW:
            key = "original_max_position_embeddings"
            limits.append(each.get(key) or config.get(key))
    return min((int(limit) for limit in limits if limit), default=None)


def default_learning_rate(hidden_size: int, architecture: str = "") -> float:
    """LoRA's rate as a function of the hidden size: tinker-cookbook's fits, one for Qwen and one for Llama-like models.

    10 x the full fine-tuning rate of 5e-5 ("LoRA Without Regret"), times (2000 / hidden size) to the power of 0.0775
    or 0.781; two digits, as the fit is no better than that. Llama: 576 -> 1.3e-3, 2048 -> 4.9e-4, 4096 -> 2.9e-4. A
    family without a fit gets Llama's, which is the lower one for all but small models.
    """
    exponent = QWEN_EXPONENT if architecture.startswith("Qwen") else LLAMA_EXPONENT
    return float(f"{5e-4 * (2000 / hidden_size) ** exponent:.1e}")
