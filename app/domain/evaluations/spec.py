"""The files of the two programs of an evaluation: one generates the answers, one grades them.

WORKDIR/spec.json is a GenerationSpec. WORKDIR/prompts.jsonl has a Prompt per row; the program writes one Started and
then an Answer per row and model to WORKDIR/answers.jsonl.

WORKDIR/grading.json is a GradingSpec. WORKDIR/rows.jsonl has an object per row: the EvaluationRow, the ModelAnswer by
model, and the Scored by grader and model of the graders that ask an endpoint. The program writes a GradedEvaluation
to WORKDIR/summary.json, and the files for the user to WORKDIR/outbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from app.domain.evaluations.graders import EvaluationSettings
from app.domain.jobs.spec import BaseSpec, Frozen, LoraSpec, QuantizationSpec


class EvaluationErrorCode(StrEnum):
    """`error.code` of a failed evaluation."""

    INVALID_FILE = "invalid_evaluation_file"
    ADAPTER_DELETED = "adapter_deleted"
    MODEL_UNAVAILABLE = "model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE_FULL = "storage_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    SERVER_ERROR = "server_error"


def precision_text(quantization: Mapping[str, Any] | None, compute_dtype: str | None = None) -> str:
    """`4 bits (nf4, as in the training)` or `16 bits`, with the dtype of the computation if it is known."""
    computed = f", computed in {compute_dtype}" if compute_dtype else ""
    if quantization is None:
        return f"16 bits{computed}"
    kind = f"{quantization['type']}, " if quantization.get("type") else ""
    return f"{quantization['bits']} bits ({kind}as in the training){computed}"


SPEC, PROMPTS, ANSWERS = "spec.json", "prompts.jsonl", "answers.jsonl"
GRADING, ROWS, SUMMARY, OUTBOX = "grading.json", "rows.jsonl", "summary.json", "outbox"
RESULTS, REPORT = "evaluation_results.jsonl", "evaluation_report.md"  # in the outbox
ModelRole = Literal["base", "adapter"]
ROLES: tuple[ModelRole, ...] = ("base", "adapter")


class GenerationSpec(Frozen):
    base: BaseSpec
    quantization: QuantizationSpec | None  # of the frozen base; None: 16 bits
    dtype_is_free: bool
    lora: LoraSpec
    adapter: Path
    adapter_manifest_sha256: str
    settings: EvaluationSettings
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
    is_cut: bool  # at the length that the settings allow


@dataclass(frozen=True)
class ModelAnswer:
    """The answer of one model to one row; without a text, `error` is the reason."""

    text: str | None
    tokens: int | None = None
    is_cut: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Scored:
    """The score of an answer; None with the reason if there is none."""

    value: float | None
    error: str | None = None
    fields: dict[str, bool] | None = None  # of `json_fields`: whether each is right
    label: str | None = None  # of `label_accuracy` and `string_check`: the answer as it is compared


class GradingSpec(Frozen):
    """The evaluation, and how its answers were generated."""

    id: str
    job_id: str
    file_id: str
    model: str
    base_model: str
    settings: EvaluationSettings
    rows_in_file: int
    precision: str
    device: str
    seconds: float  # of the generation
