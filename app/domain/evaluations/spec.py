"""The files of the program that generates answers: its spec, its prompts, its answers.

WORKDIR/spec.json is a GenerationSpec. WORKDIR/prompts.jsonl has a Prompt per row; the program writes one Started and
then an Answer per row and model to WORKDIR/answers.jsonl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from app.domain.jobs.spec import BaseSpec, Frozen, LoraSpec, QuantizationSpec

SPEC, PROMPTS, ANSWERS = "spec.json", "prompts.jsonl", "answers.jsonl"
ModelRole = Literal["base", "adapter"]
ROLES: tuple[ModelRole, ...] = ("base", "adapter")


class GenerationSpec(Frozen):
    base: BaseSpec
    quantization: QuantizationSpec | None  # of the frozen base; None: 16 bits
    dtype_is_free: bool
    lora: LoraSpec
    adapter: Path
    adapter_manifest_sha256: str
    max_new_tokens: Annotated[int, Field(ge=1)]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    memory_budget_bytes: Annotated[int, Field(gt=0)] | None = None  # of a slot that shares its GPU; None: all of it


class Prompt(Frozen):
    row: int
    tokens: list[int]


class GenerationStarted(Frozen):
    """The first line of the answers."""

    device: str
    compute_dtype: str


class Answer(Frozen):
    row: int
    model: ModelRole
    text: str
    tokens: int
    is_cut: bool  # the answer reached `max_new_tokens`
