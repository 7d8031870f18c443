"""The response body of a plan: the resolved job, and its memory and time on each kind of device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.common import Body, WarningBody
from app.domain.datasets.warnings import LineCount
from app.domain.jobs.spec import Hyperparameters, LoraSpec, QuantizationSpec
from app.domain.planning.estimate import Placement
from app.domain.planning.execution_plan import Recompute
from app.domain.planning.requirements import DeviceGroup
from app.services.jobs.plan import JobPlan


class LinesBody(Body):
    count: int
    first_lines: list[int]


class MemoryBody(Body):
    """Bytes. The peak is less than the sum: loss, live layer and final verification do not occur at the same time."""

    process: int
    base: int
    adapter: int
    cache: int
    activations: int
    live_layer: int
    loss: int
    verify: int
    kernels: int
    peak: int


class Mode(Body):
    """The layout of a step. It changes results by rounding only, and only `row_tokens` changes the rounding.

    `row_tokens` also changes the dropout masks, which are drawn per packed batch.
    """

    row_tokens: Annotated[int, Field(ge=1)]
    recompute: Recompute = "nothing"
    recompute_layers: Annotated[int, Field(ge=0)] = 0
    cache_weights: bool = False


class DeviceBody(Body):
    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    workers: int
    fits: bool
    message: str
    mode: Mode
    memory: MemoryBody
    seconds: float
    basis: Literal["formula", "measured"]


class PlanBody(Body):
    object: Literal["fine_tuning.plan"]
    model: str
    model_alias: str | None
    training_file: str
    verdict: Literal["fits", "no_device_fits", "no_worker"]
    message: str
    method: str
    hyperparameters: Hyperparameters
    lora: LoraSpec
    quantization: QuantizationSpec | None
    seed: int
    examples: int
    trained_examples: int
    tokens_per_epoch: int
    labelled_tokens_per_epoch: int
    longest_document_tokens: int
    total_steps: int
    trained_tokens: int
    cut: LinesBody
    masked: LinesBody
    empty: LinesBody
    warnings: list[WarningBody]
    devices: list[DeviceBody]


def render_plan(answer: JobPlan) -> dict[str, Any]:
    spec, report = answer.inputs.spec, answer.report
    places = zip(answer.inputs.places, answer.placements, strict=True)
    return {
        "object": "fine_tuning.plan",
        "model": spec.base_model,
        "model_alias": spec.model_alias,
        "training_file": answer.inputs.files["training_file"].id,
        "verdict": answer.verdict,
        "message": answer.message,
        "method": spec.method,
        "hyperparameters": spec.hyperparameters.model_dump(),
        "lora": spec.lora.model_dump(),
        "quantization": spec.quantization.model_dump() if spec.quantization else None,
        "seed": spec.seed,
        "examples": report.examples,
        "trained_examples": len(report.lengths),
        "tokens_per_epoch": report.tokens,
        "labelled_tokens_per_epoch": report.labelled_tokens,
        "longest_document_tokens": report.lengths.max_tokens,
        "total_steps": answer.work.steps,
        "trained_tokens": answer.work.tokens,
        "cut": _lines(report.cut),
        "masked": _lines(report.masked),
        "empty": _lines(report.empty),
        "warnings": answer.inputs.warnings,
        "devices": [_device(place, placement) for place, placement in places],
    }


def _lines(lines: LineCount) -> dict[str, Any]:
    return {"count": lines.count, "first_lines": lines.first}


def _device(place: DeviceGroup, placement: Placement) -> dict[str, Any]:
    device, memory = placement.device, placement.memory
    return {
        "kind": device.kind,
        "name": device.name,
        "memory_bytes": device.memory_bytes,
        "workers": place.workers,
        "fits": placement.fits,
        "message": placement.message,
        "mode": placement.plan.layout,
        "memory": vars(memory) | {"peak": memory.total},
        "seconds": round(placement.seconds, 1),
        "basis": placement.basis,
    }
