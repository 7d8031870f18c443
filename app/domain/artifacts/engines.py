"""Compatibility of inference engines with LoRA adapters in PEFT's format, by the features of the adapter.

The model card and `compatibility` of manifests and jobs are written from this table. A rule holds for the release in
`RELEASES`. Evidence: "run" means that an adapter was loaded by the engine and compared with PEFT; "read" means that
only the engine's source was read.

Sources: vLLM `config/lora.py`, `lora/peft_helper.py`; llama.cpp `convert_lora_to_gguf.py`, `src/llama-adapter.{h,cpp}`;
SGLang `srt/lora/lora.py`, `srt/lora/lora_manager.py`; Ollama https://github.com/ollama/ollama/pull/14969.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
# Of the classes in vLLM's registry that transformers has, too: those without the interface SupportsLoRA, for which the
# server ends at its start with --enable-lora (`v1/worker/lora_model_runner_mixin.py`). `make test-serving` compares.
VLLM_CLASSES_WITHOUT_LORA = frozenset(
    (
        "AriaForConditionalGeneration",
        "BloomForCausalLM",
        "Cohere2MoeForCausalLM",
        "Cohere2VisionForConditionalGeneration",
        "Cosmos3EdgeForConditionalGeneration",
        "DbrxForCausalLM",
        "DeepseekV4ForCausalLM",
        "DiffusionGemmaForBlockDiffusion",
        "FalconForCausalLM",
        "FalconMambaForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "Gemma3nForCausalLM",
        "Gemma3nForConditionalGeneration",
        "HrmTextForCausalLM",
        "KimiLinearForCausalLM",
        "LlavaOnevisionForConditionalGeneration",
        "Mamba2ForCausalLM",
        "MambaForCausalLM",
        "MiMoV2FlashForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
        "MossTranscribeDiarizeForConditionalGeneration",
        "PaddleOCRVLForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
        "StableLmForCausalLM",
        "Step3p7ForConditionalGeneration",
        "Zamba2ForCausalLM",
    )
)
# Of a class, the layer whose adapter vLLM takes under other names only, and refuses under its own.
VLLM_REFUSED_TARGETS = {"Glm4ForCausalLM": "gate_up_proj"}
# Of a class, the fused layer whose adapter vLLM loads and does not apply.
VLLM_IGNORED_TARGETS = {"GPTBigCodeForCausalLM": "c_attn", "GraniteMoeSharedForCausalLM": "input_linear"}
VLLM_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the only values that --max-lora-rank accepts


class Feature(StrEnum):
    """A feature of an adapter beyond one rank and one alpha for all layers."""

    ANY = "any adapter"
    RANK_ABOVE_512 = "a rank above 512"
    RSLORA = "rsLoRA"
    RANK_PATTERN = "rank_pattern"
    ALPHA_PATTERN = "alpha_pattern"
    DORA = "DoRA"
    MODULES_TO_SAVE = "modules_to_save"
    OTHER_CLASS = "a base model whose config.json names another class than the trained one"
    CLASS_WITHOUT_LORA = "a base model of a class that vLLM serves without LoRA"
    REFUSED_TARGET = "an adapter of a layer that vLLM refuses in this base model's class"
    IGNORED_TARGET = "an adapter of a layer that vLLM ignores in this base model's class"
    TARGET_PARAMETERS = "target_parameters"


class LoadResult(StrEnum):
    REFUSED = "refused"  # loading or converting fails with an error
    WRONG = "wrong"  # it loads without an error, but the outputs differ from those of PEFT
    UNKNOWN = "unknown"  # not tried


class Rule(NamedTuple):
    result: LoadResult
    reason: str  # a clause without a full stop
    evidence: Literal["run", "read", "reported"]

    @property
    def sentence(self) -> str:
        """The result with its reason and evidence, as in "Refused: vLLM has no DoRA (run)"."""
        words = {
            LoadResult.REFUSED: "Refused",
            LoadResult.WRONG: "Wrong answers without an error",
            LoadResult.UNKNOWN: "Not known",
        }
        return f"{words[self.result]}: {self.reason} ({self.evidence})"


class Incompatibility(NamedTuple):
    feature: Feature
    rule: Rule


OTHER_NAMES = "it serves the class that config.json names, whose layers may have other names than the trained ones"


RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_ABOVE_512: Rule(LoadResult.REFUSED, "vLLM accepts ranks up to 512", "run"),
        Feature.DORA: Rule(LoadResult.REFUSED, "vLLM has no DoRA", "run"),
        Feature.MODULES_TO_SAVE: Rule(LoadResult.REFUSED, "vLLM has no modules_to_save", "run"),
        Feature.OTHER_CLASS: Rule(LoadResult.UNKNOWN, OTHER_NAMES, "read"),
        Feature.CLASS_WITHOUT_LORA: Rule(
            LoadResult.REFUSED, "vLLM serves this base model's class without LoRA", "read"
        ),
        Feature.REFUSED_TARGET: Rule(
            LoadResult.REFUSED,
            "vLLM refuses an adapter of the layers gate_up_proj of this base model's class, and serves one whose "
            "target_modules leave them out",
            "run",
        ),
        Feature.IGNORED_TARGET: Rule(
            LoadResult.WRONG,
            "vLLM ignores the adapter of the fused layers (c_attn, input_linear) of this base model's class, and "
            "serves one whose target_modules leave them out",
            "run",
        ),
        Feature.TARGET_PARAMETERS: Rule(LoadResult.UNKNOWN, "adapters of experts were not tried with vLLM", "read"),
    },
    Engine.LLAMA_CPP: {
        Feature.RSLORA: Rule(LoadResult.WRONG, "llama.cpp scales by alpha / r instead of alpha / sqrt(r)", "run"),
        Feature.ALPHA_PATTERN: Rule(LoadResult.WRONG, "the converter drops alpha_pattern without an error", "run"),
        Feature.DORA: Rule(LoadResult.REFUSED, "the converter has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(
            LoadResult.WRONG, "the converter refuses an embedding or a head, and llama.cpp ignores norms", "read"
        ),
        Feature.TARGET_PARAMETERS: Rule(
            LoadResult.UNKNOWN, "adapters of experts were not tried with llama.cpp", "read"
        ),
    },
    Engine.OLLAMA: {
        Feature.ANY: Rule(LoadResult.REFUSED, "`ollama create` takes no adapter since 0.34.1", "reported"),
    },
    Engine.SGLANG: {
        Feature.RSLORA: Rule(LoadResult.WRONG, "SGLang scales by alpha / r instead of alpha / sqrt(r)", "read"),
        Feature.RANK_PATTERN: Rule(LoadResult.WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.ALPHA_PATTERN: Rule(LoadResult.WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.DORA: Rule(LoadResult.REFUSED, "SGLang has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(LoadResult.UNKNOWN, "modules_to_save was not tried with SGLang", "read"),
        Feature.OTHER_CLASS: Rule(LoadResult.UNKNOWN, OTHER_NAMES, "read"),
        Feature.TARGET_PARAMETERS: Rule(LoadResult.UNKNOWN, "adapters of experts were not tried with SGLang", "read"),
    },
}
# Problems of earlier releases that the releases in RELEASES do not have.
EARLIER_RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_PATTERN: Rule(LoadResult.WRONG, "vLLM 0.16.0 ignores rank_pattern in the scale", "read"),
        Feature.ALPHA_PATTERN: Rule(LoadResult.WRONG, "vLLM 0.16.0 ignores alpha_pattern", "read"),
    },
}


def class_features(
    trained_class: str, served_classes: Collection[str], target_modules: Collection[str]
) -> frozenset[Feature]:
    """The features of a base model; engines serve the class that its config.json names."""
    present = {
        Feature.REFUSED_TARGET: any(VLLM_REFUSED_TARGETS.get(each) in target_modules for each in served_classes),
        Feature.IGNORED_TARGET: any(VLLM_IGNORED_TARGETS.get(each) in target_modules for each in served_classes),
        Feature.OTHER_CLASS: bool(served_classes) and trained_class not in served_classes,
        Feature.CLASS_WITHOUT_LORA: not VLLM_CLASSES_WITHOUT_LORA.isdisjoint(served_classes),
    }
    return frozenset(feature for feature, is_present in present.items() if is_present)


def incompatibilities(engine: Engine, lora: LoraSpec, of_base: Collection[Feature] = ()) -> tuple[Incompatibility, ...]:
    """The reasons not to load this adapter unmerged into `engine`; empty if its outputs are those of PEFT.

    `of_base` are the `class_features` of its base model, as far as they are known.
    """
    return tuple(_applicable(RULES[engine], lora, of_base))


def earlier_incompatibilities(engine: Engine, lora: LoraSpec) -> tuple[Incompatibility, ...]:
    """The additional reasons in earlier releases of `engine`."""
    return tuple(_applicable(EARLIER_RULES.get(engine, {}), lora, ()))


def largest_rank(lora: LoraSpec) -> int:
    return max(lora.r, *lora.rank_pattern.values(), 1)


def vllm_max_lora_rank(lora: LoraSpec) -> int | None:
    """The smallest value of --max-lora-rank that accepts the adapter; None if there is none."""
    return next((rank for rank in VLLM_MAX_LORA_RANKS if rank >= largest_rank(lora)), None)


def _applicable(
    rules: Mapping[Feature, Rule], lora: LoraSpec, of_base: Collection[Feature]
) -> Iterator[Incompatibility]:
    present = {
        Feature.ANY: True,
        Feature.RANK_ABOVE_512: vllm_max_lora_rank(lora) is None,
        Feature.RSLORA: lora.use_rslora,
        Feature.RANK_PATTERN: bool(lora.rank_pattern),
        Feature.ALPHA_PATTERN: bool(lora.alpha_pattern),
        Feature.DORA: lora.use_dora,
        Feature.MODULES_TO_SAVE: bool(lora.modules_to_save),
        Feature.TARGET_PARAMETERS: bool(lora.target_parameters),
    }
    found = {feature for feature, is_present in present.items() if is_present}.union(of_base)
    return (Incompatibility(feature, rule) for feature, rule in rules.items() if feature in found)
