"""Exports of an adapter: their types, quantizations, states and error codes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from app.domain.artifacts.engines import Engine, incompatibilities
from app.domain.jobs.spec import LoraSpec


class ExportType(StrEnum):
    MERGED = "merged"  # base and adapter merged into one model directory, in the base's own 16-bit type
    GGUF = "gguf"  # the merged model as one file for llama.cpp and Ollama
    GGUF_ADAPTER = "gguf_adapter"  # the LoRA alone, for llama.cpp beside a GGUF file of the base model


class Quantization(StrEnum):
    """Weights of a GGUF file, in llama.cpp's names."""

    F16 = "F16"
    Q8_0 = "Q8_0"
    Q4_K_M = "Q4_K_M"


class ExportKind(NamedTuple):
    """What distinguishes the exports of one model."""

    type: ExportType
    quantization: Quantization | None = None  # only of GGUF


class CreateExport(BaseModel):
    """What is exported."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    type: Literal["merged", "gguf", "gguf_adapter"]
    """A merged model directory, the same as a GGUF file, or the adapter as one."""
    quantization: Literal["F16", "Q8_0", "Q4_K_M"] | None = None
    """The weights of a `gguf` export. Default: `Q8_0`."""
    checkpoint: str | None = None
    """Id or model name of a kept checkpoint. Default: the job's result."""

    @property
    def kind(self) -> ExportKind:
        type = ExportType(self.type)
        quantization = Quantization(self.quantization or Quantization.Q8_0) if type is ExportType.GGUF else None
        return ExportKind(type, quantization)


WAITING_FOR_WORKER = "waiting_for_worker"  # phase of a queued export while no running worker makes its type
BITS_PER_WEIGHT: Mapping[Quantization, float] = {  # Q4_K_M: a small model keeps more of its weights at 8 bits
    Quantization.F16: 16.0,
    Quantization.Q8_0: 8.5,
    Quantization.Q4_K_M: 6.3,
}
GGUF_METADATA_BYTES = 4 << 20  # vocabulary and merges of a tokenizer


def gguf_bytes(parameters: int, quantization: Quantization) -> int:
    """The estimated size of a GGUF file."""
    return int(parameters * BITS_PER_WEIGHT[quantization] / 8) + GGUF_METADATA_BYTES


def gguf_adapter_problem(lora: LoraSpec) -> str | None:
    """Why llama.cpp cannot use the adapter beside its base as PEFT does, and what to request instead; else None."""
    found = incompatibilities(Engine.LLAMA_CPP, lora)
    if not found:
        return None
    features = ", ".join(f"{feature}: {rule.reason}" for feature, rule in found)
    return f"llama.cpp does not compute this adapter as it was trained ({features}); export the merged model instead"


class ExportErrorCode(StrEnum):
    """`error.code` of a failed export."""

    ADAPTER_DELETED = "adapter_deleted"
    MODEL_UNAVAILABLE = "model_unavailable"
    CANNOT_MERGE = "cannot_merge"
    CANNOT_CONVERT = "cannot_convert"  # llama.cpp's converter or llama.cpp refuses the model
    DIFFERENT_ANSWERS = "different_answers"  # llama.cpp computes other answers from the file than the merged model
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"
