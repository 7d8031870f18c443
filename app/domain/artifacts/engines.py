"""Compatibility of inference engines with LoRA adapters in PEFT's format, by the features of the adapter.

The model card and `compatibility` of manifests and jobs are written from one table. A rule holds for the release in
`RELEASES`. Evidence: "run" means that an adapter was loaded by the engine and compared with PEFT; "read" means that
only the engine's source was read.

Sources: vLLM `config/lora.py`, `lora/peft_helper.py`; llama.cpp `convert_lora_to_gguf.py`, `src/llama-adapter.{h,cpp}`;
SGLang `srt/lora/lora.py`, `srt/lora/lora_manager.py`; Ollama https://github.com/ollama/ollama/pull/14969.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from string import Template
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

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
PEFT_RELEASE = "0.21"
BASE_NAME_NOTE = (
    "the plugin lora_filesystem_resolver requires base_model_name_or_path in adapter_config.json to equal what "
    "--model was given; a delivery writes the name that its target needs"
)
EFFECT_NOTE = "an adapter whose tensors match no module loads without an error; the check of a delivery detects that"
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
    REFUSED = "Refused"  # loading or converting fails with an error
    WRONG = "Wrong answers without an error"  # it loads, but the outputs differ from those of PEFT
    UNKNOWN = "Not known"  # not tried


REFUSED, WRONG, UNKNOWN = LoadResult


class Rule(NamedTuple):
    result: LoadResult
    reason: str  # a clause without a full stop
    evidence: Literal["run", "read", "reported"]

    @property
    def sentence(self) -> str:
        """The result with its reason and evidence, as in "Refused: vLLM has no DoRA (run)"."""
        return f"{self.result}: {self.reason} ({self.evidence})"


class Incompatibility(NamedTuple):
    feature: Feature
    rule: Rule


OTHER_NAMES = "it serves the class that config.json names, whose layers may have other names than the trained ones"


RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_ABOVE_512: Rule(REFUSED, "vLLM accepts ranks up to 512", "run"),
        Feature.DORA: Rule(REFUSED, "vLLM has no DoRA", "run"),
        Feature.MODULES_TO_SAVE: Rule(REFUSED, "vLLM has no modules_to_save", "run"),
        Feature.OTHER_CLASS: Rule(UNKNOWN, OTHER_NAMES, "read"),
        Feature.CLASS_WITHOUT_LORA: Rule(REFUSED, "vLLM serves this base model's class without LoRA", "read"),
        Feature.REFUSED_TARGET: Rule(
            REFUSED,
            "vLLM refuses an adapter of the layers gate_up_proj of this base model's class, and serves one whose "
            "target_modules leave them out",
            "run",
        ),
        Feature.IGNORED_TARGET: Rule(
            WRONG,
            "vLLM ignores the adapter of the fused layers (c_attn, input_linear) of this base model's class, and "
            "serves one whose target_modules leave them out",
            "run",
        ),
        Feature.TARGET_PARAMETERS: Rule(UNKNOWN, "adapters of experts were not tried with vLLM", "read"),
    },
    Engine.LLAMA_CPP: {
        Feature.RSLORA: Rule(WRONG, "llama.cpp scales by alpha / r instead of alpha / sqrt(r)", "run"),
        Feature.ALPHA_PATTERN: Rule(WRONG, "the converter drops alpha_pattern without an error", "run"),
        Feature.DORA: Rule(REFUSED, "the converter has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(
            WRONG, "the converter refuses an embedding or a head, and llama.cpp ignores norms", "read"
        ),
        Feature.TARGET_PARAMETERS: Rule(UNKNOWN, "adapters of experts were not tried with llama.cpp", "read"),
    },
    Engine.OLLAMA: {
        Feature.ANY: Rule(REFUSED, "`ollama create` takes no adapter since 0.34.1", "reported"),
    },
    Engine.SGLANG: {
        Feature.RSLORA: Rule(WRONG, "SGLang scales by alpha / r instead of alpha / sqrt(r)", "read"),
        Feature.RANK_PATTERN: Rule(WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.ALPHA_PATTERN: Rule(WRONG, "SGLang scales every layer by one alpha / r", "read"),
        Feature.DORA: Rule(REFUSED, "SGLang has no DoRA", "read"),
        Feature.MODULES_TO_SAVE: Rule(UNKNOWN, "modules_to_save was not tried with SGLang", "read"),
        Feature.OTHER_CLASS: Rule(UNKNOWN, OTHER_NAMES, "read"),
        Feature.TARGET_PARAMETERS: Rule(UNKNOWN, "adapters of experts were not tried with SGLang", "read"),
    },
}
# Problems of earlier releases that the releases in RELEASES do not have.
EARLIER_RULES: Mapping[Engine, Mapping[Feature, Rule]] = {
    Engine.VLLM: {
        Feature.RANK_PATTERN: Rule(WRONG, "vLLM 0.16.0 ignores rank_pattern in the scale", "read"),
        Feature.ALPHA_PATTERN: Rule(WRONG, "vLLM 0.16.0 ignores alpha_pattern", "read"),
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
        Feature.TARGET_PARAMETERS: lora.adapts_experts,
    }
    found = {feature for feature, is_present in present.items() if is_present}.union(of_base)
    return (Incompatibility(feature, rule) for feature, rule in rules.items() if feature in found)


class MergedExport(BaseModel):
    """The request that makes a model which the engine serves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """The path to POST to."""
    body: dict[str, str]
    """The body of the request."""


class EngineCompatibility(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ok: bool
    """Whether the engine serves the adapter as it is, with the outputs of PEFT."""
    version: str
    """The release that this holds for."""
    reasons: list[str]
    """Why not; empty if `ok`."""
    flags: list[str]
    """Options of the engine's server that the adapter needs; empty unless `ok`."""
    notes: list[str]
    """What else to observe: earlier releases, names, limits of the engine."""
    instead: MergedExport | None
    """What to serve instead; null if `ok`, and for adapted experts, which only PEFT merges."""


class Compatibility(BaseModel):
    """By engine. `transformers` is PEFT on transformers, which loads every adapter before it is published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    vllm: EngineCompatibility
    """vLLM."""
    sglang: EngineCompatibility
    """SGLang."""
    llama_cpp: EngineCompatibility
    """llama.cpp."""
    ollama: EngineCompatibility
    """Ollama."""
    transformers: EngineCompatibility
    """PEFT on transformers."""


def compatibility(lora: LoraSpec, job_id: str, of_base: Collection[Feature] = ()) -> Compatibility:
    """The compatibility of an adapter with these settings. `of_base` as in `incompatibilities`."""

    def of(engine: Engine, flags: list[str], notes: list[str]) -> EngineCompatibility:
        problems = incompatibilities(engine, lora, of_base)
        earlier = [f"Earlier releases. {each.rule.sentence}" for each in earlier_incompatibilities(engine, lora)]
        return EngineCompatibility(
            ok=not problems,
            version=RELEASES[engine],
            reasons=[problem.rule.sentence for problem in problems],
            flags=[] if problems else flags,
            notes=[] if problems else earlier + notes,
            instead=_merged_export(job_id, engine) if problems and not lora.adapts_experts else None,
        )

    rank = largest_rank(lora)
    return Compatibility(
        vllm=of(
            Engine.VLLM,
            ["--enable-lora", "--max-lora-rank", str(vllm_max_lora_rank(lora))],
            [BASE_NAME_NOTE, EFFECT_NOTE],
        ),
        sglang=of(Engine.SGLANG, ["--enable-lora", "--max-lora-rank", str(rank)], []),
        llama_cpp=of(Engine.LLAMA_CPP, ["--lora"], ["an export of type gguf_adapter converts the adapter"]),
        ollama=of(Engine.OLLAMA, [], []),
        transformers=EngineCompatibility(
            ok=True, version=f"PEFT {PEFT_RELEASE}", reasons=[], flags=[], notes=[], instead=None
        ),
    )


def job_compatibility(spec: dict[str, Any], job_id: str) -> dict[str, Any]:
    """The compatibility of the adapter that a job with this stored spec makes."""
    engines = _compatibility_of_lora(to_json(spec["lora"]))
    exports = {
        engine: entry | {"instead": _merged_export(job_id, Engine[engine.upper()]).model_dump(mode="json")}
        for engine, entry in engines.items()
        if entry["instead"]
    }
    return engines | exports


@lru_cache(maxsize=1024)  # most jobs share few settings
def _compatibility_of_lora(lora_json: bytes) -> dict[str, Any]:
    """The entries by engine; `instead`, where there is one, names no job."""
    return compatibility(LoraSpec.model_validate_json(lora_json), job_id="").model_dump(mode="json")


def _merged_export(job_id: str, engine: Engine) -> MergedExport:
    """The export of the merged model in the engine's own format."""
    is_gguf = engine in (Engine.LLAMA_CPP, Engine.OLLAMA)
    body = {"type": "gguf", "quantization": "Q8_0"} if is_gguf else {"type": "merged"}
    return MergedExport(path=f"/v1/fine_tuning/jobs/{job_id}/exports", body=body)


PEFT_CODE = Template("""\
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained($base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(base, $adapter).eval()
tokenizer = AutoTokenizer.from_pretrained($adapter)  # with the chat template of the training
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "QUESTION"}], add_generation_prompt=True, return_tensors="pt", return_dict=True$more
)
tokens = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))""")


def peft_code(base: str, adapter: str, arguments: Mapping[str, Any] | None = None) -> str:
    """A program that loads the adapter with PEFT, and answers a question; `base` and `adapter` are what it loads.

    `arguments` are those of the chat template.
    """
    more = f",\n    **{dict(arguments)!r}," if arguments else ""
    return PEFT_CODE.substitute(base=json.dumps(base), adapter=json.dumps(adapter), more=more)
