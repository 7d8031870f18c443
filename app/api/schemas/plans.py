"""Response bodies of a plan, with memory and time on each kind of device, and of the differences between two jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasPath, Field

from app.api.schemas.common import Body, LoraBody, WarningBody
from app.domain.evaluations.graders import EvaluationPlan
from app.domain.jobs.spec import Hyperparameters, QuantizationSpec
from app.domain.planning.execution_plan import Recompute


def at(first: str, *path: str) -> Any:
    """A field that is read from the attribute at this path."""
    return Field(validation_alias=AliasPath(first, *path))


class LinesBody(Body):
    count: int
    """The number of examples."""
    first_lines: list[int] = Field(validation_alias="first")
    """Line numbers of the first of them, counted from 1."""


class MemoryBody(Body):
    """Bytes. The peak is less than the sum: loss, live layer and final verification do not occur at the same time."""

    process: int
    """The process before a model is loaded."""
    base: int
    """The frozen weights."""
    adapter: int
    """The adapter with its gradients and optimizer state."""
    cache: int
    """Dequantized weights that are kept."""
    activations: int
    """Activations that the backward pass needs."""
    live_layer: int
    """The layer that is being computed."""
    loss: int
    """Logits and their gradient."""
    verify: int
    """The verification of the finished adapter."""
    forwards: int
    """Passes without gradients over batches that are longer than those of the steps."""
    kernels: int
    """Memory that the kernels of the device allocate."""
    peak: int = Field(validation_alias="total")
    """The peak."""


class Mode(Body):
    """The layout of a step. It changes results by rounding only, and only `row_tokens` changes the rounding.

    `row_tokens` also changes the dropout masks, which are drawn per packed batch.
    """

    row_tokens: Annotated[int, Field(ge=1)]
    """The maximum number of tokens of a packed batch."""
    recompute: Recompute = "nothing"
    """What the backward pass recomputes (activation checkpointing)."""
    recompute_layers: Annotated[int, Field(ge=0)] = 0
    """The number of layers with recomputation."""
    cache_weights: bool = False
    """Whether dequantized weights are kept between uses of a layer."""
    offload: bool = False
    """Whether the inputs of the layers wait for the backward pass in the memory of the host."""
    mlp_chunk_tokens: Annotated[int, Field(ge=0)] = 0
    """The number of tokens over which the MLP of a recomputed layer runs at once; 0 for all."""


class DeviceBody(Body):
    kind: Literal["cpu", "cuda"] = at("placement", "device", "kind")
    """CPU or NVIDIA GPU."""
    name: str = at("placement", "device", "name")
    """The name that the driver reports."""
    memory_bytes: int = at("placement", "device", "memory_bytes")
    """The memory of the device, or the budget of a slot of a shared GPU."""
    workers: int
    """The number of live workers with this device."""
    fits: bool = at("placement", "fits")
    """Whether the job fits into the memory of the device."""
    message: str = at("placement", "message")
    """`Fits.` with the time, or `Does not fit.` with what to do."""
    details: str = at("placement", "details")
    """The memory and the layout of a step in a sentence, and whether they were measured."""
    mode: Mode = at("placement", "plan", "layout")
    """The fastest layout of a step on this device."""
    memory: MemoryBody = at("placement", "memory")
    """The estimated memory by component."""
    seconds: Annotated[float, AfterValidator(lambda seconds: round(seconds, 1))] = at("placement", "seconds")
    """The estimated time from the start of training to the adapter."""
    basis: Literal["formula", "measured"] = at("placement", "basis")
    """`formula` until a similar job has run on such a device, `measured` from then on."""


class PlanBody(Body):
    object: Literal["fine_tuning.plan"] = "fine_tuning.plan"
    model: str = at("inputs", "spec", "base_model")
    model_alias: str | None = at("inputs", "spec", "model_alias")
    """The name in the request, if it is an alias of the base model; else null."""
    training_file: str = at("inputs", "training_file", "id")
    verdict: Literal["fits", "no_device_fits", "no_worker"]
    """Whether a live worker can run the job."""
    message: str
    """`Fits.` with the time on the fastest device, or `Does not fit.` with what to do, or why no worker takes the job.
    """
    method: str = at("inputs", "spec", "method")
    """The method, such as `supervised`."""
    hyperparameters: Hyperparameters = at("inputs", "spec", "hyperparameters")
    lora: LoraBody = at("inputs", "spec", "lora")
    quantization: QuantizationSpec | None = at("inputs", "spec", "quantization")
    seed: int = at("inputs", "spec", "seed")
    examples: int = at("report", "examples")
    """The number of examples in the training file."""
    trained_examples: int
    """The number of examples without the empty ones."""
    tokens_per_epoch: int = at("report", "tokens")
    """The number of tokens that the model processes."""
    labelled_tokens_per_epoch: int = at("report", "labelled_tokens")
    """The number of learned tokens."""
    longest_document_tokens: int = at("report", "lengths", "max_tokens")
    """The length of the longest document after truncation."""
    total_steps: int = at("work", "steps")
    trained_tokens: int = at("work", "tokens")
    cut: LinesBody = at("report", "cut")
    """Examples longer than `context_length`."""
    masked: LinesBody = at("report", "masked")
    """The examples of `empty` that have no token to learn even before truncation."""
    empty: LinesBody = at("report", "empty")
    """Examples without a token to learn; they are skipped."""
    warnings: list[WarningBody]
    """What does not fail the job but may be unintended: `without_effect`, `same_file`, `experts_frozen`,
    `no_validation_file`, `unread_enable_thinking` and the like of the other `chat_template_kwargs`.
    """
    evaluation: EvaluationPlan | None
    """The evaluation after the training; null: none. Its rows are null unless they are those of the validation file."""
    devices: list[DeviceBody]
    """One entry for each kind of device of a live worker."""


class DiffRow(Body):
    """`path` is dotted; a value that one of the jobs lacks is null."""

    path: str
    """The dotted path of the value, such as `lora.r`."""
    left: Any
    """The value of the job in the path; null: it has none."""
    right: Any
    """The value of the job in `with`; null: it has none."""
    differs: bool
    """Whether the values differ in type or value. A value that is null because the job has not run yet is no
    difference.
    """


class DiffSection(Body):
    differences: int
    """The number of values that differ."""
    values: list[DiffRow]
    """All values that at least one of the jobs has, equal ones included."""


class DiffJob(Body):
    id: str
    status: str = Field(validation_alias="state")
    """The status of the job."""
    fine_tuned_model: str | None
    """The `ft:` name of the result; null until the job has succeeded."""
    training_file: str = Field(validation_alias="training_file_id")
    validation_file: str | None = Field(validation_alias="validation_file_id")
    cloned_from: str | None
    """The job that it was cloned from, or null."""


class DiffBody(Body):
    object: Literal["fine_tuning.job.diff"] = "fine_tuning.job.diff"
    left: DiffJob
    """The job in the path."""
    right: DiffJob
    """The job in `with`."""
    data: DiffSection
    """The datasets: SHA-256, bytes, rows, tokens."""
    config: DiffSection
    """All resolved parameters."""
    environment: DiffSection
    """The last attempt of each job: device, precision, versions, layout, worker."""
    result: DiffSection
    """Status, losses, tokens, times, memory, adapter."""
