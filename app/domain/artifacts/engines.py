"""What inference engines do with a LoRA adapter in PEFT's format, by what its configuration contains.

The one table of such rules: the model card is written from it. A rule holds for the release in `RELEASES`. "run" means
that an adapter was loaded there and compared with PEFT; "read" means that only the engine's source was read.

Sources: vLLM `config/lora.py`, `lora/peft_helper.py`; llama.cpp `convert_lora_to_gguf.py`, `src/llama-adapter.{h,cpp}`;
SGLang `srt/lora/lora.py`, `srt/lora/lora_manager.py`; Ollama https://github.com/ollama/ollama/pull/14969.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from app.domain.jobs.spec import LoraSpec


class Engine(StrEnum):
    VLLM = "vLLM"
    LLAMA_CPP = "llama.cpp"
    OLLAMA = "Ollama"
    SGLANG = "SGLang"


RELEASES = {
    Engine.VLLM: "0.32.0",
    Engine.LLAMA_CPP: "of October 2026",
    Engine.OLLAMA: "0.34.1",
    Engine.SGLANG: "0.5.23",
}
VLLM_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the only values that --max-lora-rank accepts


class Feature(StrEnum):
    """What an adapter may have beyond one rank and one alpha for all layers."""

    ANY = "any adapter"
    RANK_ABOVE_512 = "a rank above 512"
    RSLORA = "rsLoRA"
    RANK_PATTERN = "rank_pattern"
    ALPHA_PATTERN = "alpha_pattern"
    DORA = "DoRA"
    MODULES_TO_SAVE = "modules_to_save"


class Outcome(StrEnum):
    REFUSED = "refused"  # loading or converting fails with an error
    WRONG = "wrong"  # it loads without an error, and the model computes something else
    UNKNOWN = "unknown"  # neither run nor read


class Rule(NamedTuple):
    outcome: Outcome
    reason: str  # a clause without a full stop
    evidence: Literal["run", "read", "reported"]


class Problem(NamedTuple):
    feature: Feature
    rule: Rule


RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_ABOVE_512: Rule(Outcome.REFUSED, "vLLM accepts ranks up to 512", "run"),
        Feature.DORA: Rule(Outcome.REFUSED, "vLLM has no DoRA", "run"),
        Feature.MODULES_TO_SAVE: Rule(Outcome.REFUSED, "vLLM has no modules_to_save", "run"),
    },
    Engine.LLAMA_CPP: {
        Feature.RSLORA: Rule(Outcome.WRONG, "llama.cpp scales by alpha / r instead of alpha / sqrt(r)", "run"),
        Feature.ALPHA_PATTERN: Rule(Outcome.WRONG, "the converter drops alpha_pattern without an error", "run"),
        Feature.DORA: Rule(Outcome.REFUSED, "the converter has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(
            Outcome.WRONG, "the converter refuses an embedding or a head, and llama.cpp ignores norms", "read"
        ),
    },
    Engine.OLLAMA: {
        Feature.ANY: Rule(Outcome.REFUSED, "`ollama create` takes no adapter since 0.34.1", "reported"),
    },
    Engine.SGLANG: {
        Feature.RSLORA: Rule(Outcome.WRONG, "SGLang scales by alpha / r instead of alpha / sqrt(r)", "read"),
        Feature.RANK_PATTERN: Rule(Outcome.WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.ALPHA_PATTERN: Rule(Outcome.WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.DORA: Rule(Outcome.REFUSED, "SGLang has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(Outcome.UNKNOWN, "modules_to_save was not tried with SGLang", "read"),
    },
}
# Of earlier releases, where the one of RELEASES is right.
EARLIER_RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_PATTERN: Rule(Outcome.WRONG, "vLLM 0.16.0 ignores rank_pattern in the scale", "read"),
        Feature.ALPHA_PATTERN: Rule(Outcome.WRONG, "vLLM 0.16.0 ignores alpha_pattern", "read"),
    },
}


def problems(engine: Engine, lora: LoraSpec) -> tuple[Problem, ...]:
    """Why `engine` must not be given this adapter unmerged; empty where it computes what PEFT computes."""
    return tuple(_broken(RULES[engine], lora))


def earlier_problems(engine: Engine, lora: LoraSpec) -> tuple[Problem, ...]:
    """The same for earlier releases of `engine`, where they differ."""
    return tuple(_broken(EARLIER_RULES.get(engine, {}), lora))


def largest_rank(lora: LoraSpec) -> int:
    return max(lora.r, *lora.rank_pattern.values(), 1)


def vllm_max_lora_rank(lora: LoraSpec) -> int | None:
    """The smallest value of --max-lora-rank that admits the adapter; None where none does."""
    return next((rank for rank in VLLM_MAX_LORA_RANKS if rank >= largest_rank(lora)), None)


def _broken(rules: Mapping[Feature, Rule], lora: LoraSpec) -> Iterator[Problem]:
    present = {
        Feature.ANY: True,
        Feature.RANK_ABOVE_512: vllm_max_lora_rank(lora) is None,
        Feature.RSLORA: lora.use_rslora,
        Feature.RANK_PATTERN: bool(lora.rank_pattern),
        Feature.ALPHA_PATTERN: bool(lora.alpha_pattern),
        Feature.DORA: lora.use_dora,
        Feature.MODULES_TO_SAVE: bool(lora.modules_to_save),
    }
    return (Problem(feature, rule) for feature, rule in rules.items() if present[feature])
