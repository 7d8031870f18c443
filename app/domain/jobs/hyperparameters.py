"""What a job trains with: its adapter and its hyperparameters, as stored in its spec.

Methods and request parameters are defined with these; the whole spec (spec.py) then names the methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.datasets.template_arguments import StoredIfSet
from app.domain.error_text.json_text import plain_number


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


class EarlyStopping(Frozen):
    """Stop when the full validation loss was not more than `threshold` nats below the reference in `patience`
    validations in a row. The reference is the loss of the last validation that was lower by more than `threshold`."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)  # of a request, too

    patience: Annotated[int, Field(ge=1, le=100, examples=[3])] = 3
    """The number of consecutive validations without an improvement before training stops."""
    # nats; a loss of 12 is that of guessing among all tokens
    threshold: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, examples=[0.01])] = 0.0
    """The decrease of the loss, in nats, that counts as an improvement."""


OptimizerName = Literal["adamw", "adamw_8bit"]


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
    # Stored only if it is not the default: workers of earlier releases do not know it.
    optimizer: Annotated[OptimizerName, Field(exclude_if=lambda name: name == "adamw")] = "adamw"
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
