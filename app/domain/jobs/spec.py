"""The spec of a job, fully resolved: no "auto", and no default that may change.

`JobSpec` is stored in the job row when the job is created and never changes. `TrainerSpec` is the file the trainer
reads: one base model, one quantization, and one run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.domain.base_models.catalog import CatalogEntry, StatSignature
from app.domain.datasets.template_arguments import ChatTemplateArguments, StoredArguments, StoredIfSet
from app.domain.error_text.json_text import plain_number
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.files import JobFileOrigins
from app.domain.methods import METHODS, OWNERS, MethodName
from app.domain.planning.execution_plan import Measurement


@dataclass(frozen=True)
class Bounds:
    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum  # false for NaN

    def __str__(self) -> str:
        return f"from {plain_number(self.minimum)} to {plain_number(self.maximum)}"


LEARNING_RATE = Bounds(1e-12, 10)  # AdamW moves a weight by up to the rate in each step; 1e-6 to 1e-2 are in use
ALPHA = Bounds(1e-3, 100_000)  # 1 to 1,024 are in use
EARLY_STOPPING_THRESHOLD = Bounds(0, 100)  # nats; a loss of 12 is that of guessing among all tokens
SHARE_WEIGHT = Bounds(1e-6, 1e6)  # GPU time is divided by it


SPEC_VERSION: Literal[1] = 1
# Which checks a line of a dataset must pass. 2 also refuses what 1 accepted and then omitted from training or
# changed. A job keeps the rules under which it was created, so its files stay valid.
LineRules = Literal[1, 2]
LINE_RULES: LineRules = 2


class Frozen(BaseModel):
    """Immutable; an unknown key is an error, so that a typo does not become a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraSpec(Frozen):
    """h = W x + scale * B A x; scale is alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2106.09685, 2312.03732)."""

    r: Annotated[int, Field(ge=1, le=256)]
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...]
    use_rslora: bool = False
    use_dora: bool = False  # arXiv 2402.09353
    # Regular expression for the end of a layer's name -> rank, as requested. In a RunSpec and in everything that
    # is published the keys are single layers: their full names, escaped (app.domain.jobs.layer_patterns).
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: tuple[str, ...] = ()  # fully trained and saved with A and B
    target_parameters: tuple[str, ...] = ()  # stacked weights of experts, by the ends of their names, as in PEFT
    # All of them. Stored only when true: workers of earlier releases do not know it.
    experts: Annotated[bool, Field(exclude_if=lambda adapted: not adapted)] = False
    bias: Literal["none"] = "none"
    init: Literal["default"] = "default"

    @property
    def adapts_experts(self) -> bool:
        return self.experts or bool(self.target_parameters)


class LayerPatterns(Frozen):
    """`rank_pattern` and `alpha_pattern` of a LoraSpec with one key for each layer that they match."""

    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}


class QuantizationSpec(Frozen):
    """How the frozen base is held (QLoRA, arXiv 2305.14314). Absent in a request means exactly these defaults."""

    bits: Literal[4, 8] = 4  # 8: rows of int8 with one scale each (LLM.int8, arXiv 2208.07339)
    type: Literal["nf4", "fp4"] | None = None  # of 4 bits, where it is NF4 if not given; None for 8
    double_quant: bool | None = None  # of 4 bits, where it is on if not given; None for 8
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("bits", 4) != 4:
            return values
        given = {name: value for name, value in values.items() if value is not None}
        return {"type": "nf4", "double_quant": True} | given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bits == 8 and (self.type is not None or self.double_quant is not None):
            raise ValueError("type and double_quant belong to 4 bits; 8 bits have one scale a row, no choice")
        return self


class EarlyStopping(Frozen):
    """Stop when the full validation loss was not more than `threshold` nats below the reference in `patience`
    validations in a row. The reference is the loss of the last validation that was lower by more than `threshold`."""

    patience: Annotated[int, Field(ge=1, le=100)] = 3
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Hyperparameters(Frozen):
    n_epochs: Annotated[int, Field(ge=1, le=50)]
    batch_size: Annotated[int, Field(ge=1, le=256)]  # examples per optimizer step
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | None
    warmup_ratio: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    context_length: Annotated[int, Field(ge=1)]  # tokens
    packing: bool = True
    max_steps: Annotated[int, Field(ge=1)] | None = None
    eval_steps: Annotated[int, Field(ge=1)] | None = None  # between validations; absent = at the end of each epoch
    early_stopping: EarlyStopping | None = None
    promote_best: bool = False  # the result is the adapter with the lowest full validation loss, not the last one
    # Of single methods (app.domain.methods). `beta` without a loss_type is that of the sigmoid loss.
    beta: Annotated[float, Field(gt=0)] | None = None
    loss_type: Annotated[Literal["sigmoid", "ipo", "simpo"] | None, StoredIfSet] = None
    simpo_gamma: Annotated[float | None, Field(ge=0), StoredIfSet] = None
    desirable_weight: Annotated[float | None, Field(gt=0), StoredIfSet] = None
    undesirable_weight: Annotated[float | None, Field(gt=0), StoredIfSet] = None

    @property
    def label_weights(self) -> tuple[float, float]:
        """The weights of desirable and undesirable answers in the loss."""
        return self.desirable_weight or 1.0, self.undesirable_weight or 1.0


class DataParameters(Frozen):
    """The fields of a spec and of its hyperparameters that decide which tokens and labels a file has.

    Validation, plans and their cache, dataset reports and the trainer all read a file by one of these.
    """

    method: MethodName = "supervised"
    line_rules: LineRules = LINE_RULES
    context_length: Annotated[int, Field(ge=1)] = sys.maxsize  # tokens
    chat_template_kwargs: ChatTemplateArguments | None = None

    @classmethod
    def of(cls, spec: JobSpec | RunSpec) -> Self:
        values = dict(spec.hyperparameters) | dict(spec)
        return cls(**{name: values[name] for name in cls.model_fields})


MAX_SAMPLE_PROMPTS = 4  # each is answered with up to 64 tokens at every validation
MAX_SAMPLE_PROMPT_CHARACTERS = 2_000

SamplePrompt = Annotated[str, Field(min_length=1, max_length=MAX_SAMPLE_PROMPT_CHARACTERS)]
SamplePrompts = Annotated[tuple[SamplePrompt, ...], Field(max_length=MAX_SAMPLE_PROMPTS)]


class JobSpec(Frozen):
    # Not among the parameters of a job: names and notes of the request, and what follows from other fields.
    NOTES: ClassVar = frozenset(
        {"version", "model_alias", "file_origins", "dtype_is_free", "layer_patterns", "line_rules"}
    )

    version: Literal[1] = SPEC_VERSION
    base_model: str
    # The name in the request, if it is an alias of the base model
    model_alias: Annotated[str | None, StoredIfSet] = None
    method: MethodName = "supervised"
    line_rules: LineRules = 1  # absent: a job of a release with only these
    # {training_file, validation_file: a FileOrigin} of files that were imported
    file_origins: Annotated[JobFileOrigins | None, StoredIfSet] = None
    continued_from: str | None = None  # the "ft:..." model of this project from which training continues
    lora: LoraSpec  # as requested
    layer_patterns: LayerPatterns | None = None  # its patterns, matched; None: it has none, or they are not matched yet
    quantization: QuantizationSpec | None
    dtype_is_free: bool = False  # the request set no compute_dtype: the device's default
    hyperparameters: Hyperparameters
    chat_template_kwargs: StoredArguments = None  # of every prompt of the job and its adapter; a row has its own on top
    sample_prompts: SamplePrompts = ()
    evaluation: EvaluationRequest | None = None  # made when the training has succeeded
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)]

    @property
    def data_parameters(self) -> DataParameters:
        return DataParameters.of(self)

    @property
    def layer_lora(self) -> LoraSpec:
        """`lora` with one pattern key per layer."""
        return self.lora.model_copy(update=dict(self.layer_patterns)) if self.layer_patterns else self.lora


class BaseSpec(Frozen):
    """A registered base model on disk."""

    name: str
    alias: str | None = None  # the name in the job's request, if that is an alias
    directory: Path
    manifest_sha256: str  # of the registered files; the trainer refuses a directory that differs
    source: str | None = None  # its id on a hub, such as "Qwen/Qwen3-4B"
    revision: str | None = None  # the commit or tag of that hub
    entry: CatalogEntry | None = None  # absent: read the directory
    signature: StatSignature | None = (
        None  # catalog.stat_signature of the files that gave this hash; absent: hash again
    )


class RunSpec(Frozen):
    """One adapter to train. Paths are absolute or relative to the work directory."""

    run_id: str
    method: MethodName = "supervised"
    line_rules: LineRules = LINE_RULES
    lora: LoraSpec
    start_adapter: Path | None = None  # an adapter directory whose A and B are the start; its manifest was verified
    start_adapter_sha256: str | None = None  # of its manifest
    start_adapter_name: str | None = None  # its "ft:..." name, for the new adapter's manifest
    hyperparameters: Hyperparameters
    seed: int
    file_origins: JobFileOrigins | None = None  # of imported files, for the manifest
    training_file: Path
    training_file_sha256: str
    validation_file: Path | None = None
    validation_file_sha256: str | None = None
    resume_from: Path | None = None  # a snapshot's directory, or one of snapshots: the newest whole one is taken then
    chat_template_kwargs: StoredArguments = None
    sample_prompts: SamplePrompts = ()  # answered by the base and by the adapter at every validation

    @property
    def data_parameters(self) -> DataParameters:
        return DataParameters.of(self)

    @model_validator(mode="after")
    def _has_hyperparameters_of_method(self) -> RunSpec:
        if problems := list(METHODS[self.method].problems(self.hyperparameters, OWNERS)):
            raise ValueError(f"{self.run_id}: {'; '.join(problems)}")
        return self


class TrainerSpec(Frozen):
    """WORKDIR/spec.json. Everything the run writes goes to WORKDIR/runs/<run_id>/."""

    version: Literal[1] = SPEC_VERSION
    base: BaseSpec
    quantization: QuantizationSpec | None
    runs: Annotated[tuple[RunSpec, ...], Field(min_length=1, max_length=1)]
    snapshot_interval_seconds: float = 300.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    worker_has_gpu: bool = False  # when the worker started: with `auto`, the job does not train on the CPU instead
    threads: int | None = None  # CPU threads of each process; absent = physical cores
    dtype_is_free: bool = False  # the request set no compute_dtype: the device's default
    world_size: Annotated[int, Field(ge=1, le=64)] = 1  # processes that share each step's documents, one a GPU
    measurements: tuple[Measurement, ...] = ()  # of earlier jobs on this device, base and quantization
    out_of_memory_kills: Annotated[int, Field(ge=0)] = 0  # of earlier attempts, by the kernel: be smaller this time
    cuda_kernels: bool = False  # the setting of the worker; False in specs of earlier ones
    memory_budget_bytes: Annotated[int, Field(gt=0)] | None = None  # of a slot that shares its GPU; None: all of it

    @property
    def run(self) -> RunSpec:
        return self.runs[0]
