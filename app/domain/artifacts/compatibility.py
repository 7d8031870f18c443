"""Which engines serve an adapter as it is: `compatibility` of a manifest and of a job, from the rules in `engines`."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from app.domain.artifacts.engines import (
    RELEASES,
    Engine,
    Feature,
    earlier_incompatibilities,
    incompatibilities,
    largest_rank,
    vllm_max_lora_rank,
)
from app.domain.jobs.spec import LoraSpec

PEFT_RELEASE = "0.21"
BASE_NAME_NOTE = (
    "the plugin lora_filesystem_resolver requires base_model_name_or_path in adapter_config.json to equal what "
    "--model was given; a delivery writes the name that its target needs"
)
EFFECT_NOTE = "an adapter whose tensors match no module loads without an error; the check of a delivery detects that"


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
    """The compatibility of an adapter with these settings. `of_base` as in `engines.incompatibilities`."""

    def of(engine: Engine, flags: list[str], notes: list[str]) -> EngineCompatibility:
        problems = incompatibilities(engine, lora, of_base)
        earlier = [f"Earlier releases. {each.rule.sentence}" for each in earlier_incompatibilities(engine, lora)]
        return EngineCompatibility(
            ok=not problems,
            version=RELEASES[engine],
            reasons=[problem.rule.sentence for problem in problems],
            flags=[] if problems else flags,
            notes=[] if problems else earlier + notes,
            instead=_merged_export(job_id, engine) if problems and not lora.target_parameters else None,
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
