"""The spec of a job, fully resolved: no "auto", and no default that may change.

`JobSpec` is stored in the job row when the job is created and never changes. `TrainerSpec` is the file the trainer
reads: one base model, one quantization, and one run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.domain.base_models.catalog import CatalogEntry, StatSignature
from app.domain.datasets.template_arguments import ChatTemplateArguments, StoredArguments, StoredIfSet
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.files import JobFileOrigins
from app.domain.jobs.hyperparameters import Bounds
from app.domain.jobs.hyperparameters import EarlyStopping as EarlyStopping
from app.domain.jobs.hyperparameters import Frozen as Frozen
from app.domain.jobs.hyperparameters import Hyperparameters as Hyperparameters
from app.domain.jobs.hyperparameters import LayerPatterns as LayerPatterns
from app.domain.jobs.hyperparameters import LoraSpec as LoraSpec
from app.domain.methods import METHODS, OWNERS, MethodName
from app.domain.planning.execution_plan import Measurement

SHARE_WEIGHT = Bounds(1e-6, 1e6)  # GPU time is divided by it
SPEC_VERSION: Literal[1] = 1
# Which checks a line of a dataset must pass. 2 also refuses what 1 accepted and then omitted from training or
# changed. A job keeps the rules under which it was created, so its files stay valid.
LineRules = Literal[1, 2]
LINE_RULES: LineRules = 2


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


class TokensFile(Frozen):
    """The stored tokens of a dataset (app.domain.datasets.stored_tokens)."""

    path: Path
    sha256: str
    dataset_sha256: str


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
    # Of the validation; absent: tokenize. Its templates printed the time `rendered_at`.
    training_tokens: TokensFile | None = None
    validation_tokens: TokensFile | None = None
    rendered_at: str | None = None
    resume_from: Path | None = None  # a snapshot's directory, or one of snapshots: the newest whole one is taken then
    chat_template_kwargs: StoredArguments = None
    sample_prompts: SamplePrompts = ()  # answered by the base and by the adapter at every validation

    @property
    def data_parameters(self) -> DataParameters:
        return DataParameters.of(self)

    @model_validator(mode="after")
    def _has_hyperparameters_of_method(self) -> RunSpec:
        if problems := METHODS[self.method].problems(self.hyperparameters, OWNERS):
            text = "; ".join(f"{param} {problem}" for param, problem in problems.items())
            raise PydanticCustomError("invalid_spec", "{text}", {"param": next(iter(problems)), "text": text})
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
