"""What will be trained, fully resolved: no "auto", no default left to anybody's taste.

`JobSpec` is stored in the job row when the job is created and never changes. `TrainerSpec` is the file the trainer
reads: one base model, one quantization, and a *list* of runs that share them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.modes import Measurement

SPEC_VERSION: Literal[1] = 1


class Frozen(BaseModel):
    """Immutable, and an unknown key is an error: a typo never becomes a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraSpec(Frozen):
    """h = W x + scale * B A x; scale is alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2106.09685, 2312.03732)."""

    r: Annotated[int, Field(ge=1, le=256)]
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...]
    use_rslora: bool = False
    use_dora: bool = False  # arXiv 2402.09353; the run then shares its base with no other
    rank_pattern: dict[str, int] = {}  # layer name, or its end, or a regular expression -> rank, as PEFT reads them
    alpha_pattern: dict[str, float] = {}
    modules_to_save: tuple[str, ...] = ()  # trained whole and saved beside A and B; such a run is alone, too
    bias: Literal["none"] = "none"
    init: Literal["default"] = "default"

    @property
    def is_exclusive(self) -> bool:
        """Whether the run changes the forward of the base itself, so that no other run can share it."""
        return self.use_dora or bool(self.modules_to_save)


class QuantizationSpec(Frozen):
    """How the frozen base is held (QLoRA, arXiv 2305.14314). Absent in a request means exactly these defaults."""

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"  # of 4 bits
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class EarlyStopping(Frozen):
    """Stop when the validation loss has not fallen by more than `threshold` nats in `patience` validations in a row."""

    patience: Annotated[int, Field(ge=1, le=100)] = 3
    threshold: Annotated[float, Field(ge=0)] = 0.0


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
    beta: Annotated[float, Field(gt=0)] | None = None  # of DPO (arXiv 2305.18290), and only there


Method = Literal["supervised", "dpo"]


class JobSpec(Frozen):
    version: Literal[1] = SPEC_VERSION
    base_model: str
    method: Method = "supervised"
    continued_from: str | None = None  # the id of the job whose adapter training goes on from ("model": "ft:...")
    lora: LoraSpec
    quantization: QuantizationSpec | None
    hyperparameters: Hyperparameters
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)]


class BaseSpec(Frozen):
    """A registered base model as the trainer finds it on disk."""

    name: str
    directory: Path
    manifest_sha256: str  # of the registered files; the trainer refuses a directory that differs


class RunSpec(Frozen):
    """One adapter to train. Paths are absolute or relative to the work directory."""

    run_id: str
    method: Method = "supervised"
    lora: LoraSpec
    start_adapter: Path | None = None  # an adapter directory whose A and B are the start; its manifest was verified
    start_adapter_sha256: str | None = None  # of its manifest
    hyperparameters: Hyperparameters
    seed: int
    training_file: Path
    training_file_sha256: str
    validation_file: Path | None = None
    validation_file_sha256: str | None = None
    resume_from: Path | None = None  # a snapshot directory whose manifest was verified
    sample_prompts: tuple[str, ...] = ()


class TrainerSpec(Frozen):
    """WORKDIR/spec.json. Everything the run writes goes to WORKDIR/runs/<run_id>/."""

    version: Literal[1] = SPEC_VERSION
    base: BaseSpec
    quantization: QuantizationSpec | None
    runs: Annotated[tuple[RunSpec, ...], Field(min_length=1)]
    snapshot_interval_seconds: float = 300.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # CPU threads; absent = physical cores
    measurements: tuple[Measurement, ...] = ()  # of earlier jobs on this device, base and quantization
    out_of_memory_kills: Annotated[int, Field(ge=0)] = 0  # of earlier attempts, by the kernel: be smaller this time
