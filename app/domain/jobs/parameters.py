"""Request parameters of a job: one definition each, with its aliases, bounds, description and "auto".

Those of LoRA are in lora_parameters.py, those of a single method in app.domain.methods. CONTRIBUTING.md shows how to
add one. Fields are checked, and their problems reported, in this order.

What "auto" means depends on the number of examples and the base model's entry. Where each rule comes from, and what was
measured with it: docs/how-it-works/decisions/parameters.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, PlainValidator, WithJsonSchema

from app.domain.base_models.catalog import CatalogEntry
from app.domain.error_text.json_text import as_json
from app.domain.jobs.definitions import AtMost, Auto, ParameterError, Parameters, ResolutionContext
from app.domain.jobs.hyperparameters import (
    LEARNING_RATE,
    EarlyStopping,
    LoraSpec,
    OptimizerName,
)
from app.domain.planning.duration import KERNEL_SECONDS, LAYER_KERNELS, REFERENCE_FLOPS

MAX_STEPS = 10_000_000
REFERENCE_LENGTH = 1200  # steps x epochs for which the rate in a model's entry is meant, such as 400 steps in 3 epochs
REFERENCE_STRENGTH = 32.0  # scale x rank: alpha, but for rsLoRA; "LoRA Without Regret" has alpha 32 for every rank
STEPS_PER_EPOCH = 32
MAX_BATCH_SIZE = 256
# Of a run whose steps are enlarged to fill a GPU. The hardest task of the measurements, 77 labels by 8 rows, had 0.71
# of its answers right after 250 steps, 0.79 after 500 and 0.80 after 750.
FILLED_STEPS = 1000
BYTES_PER_TOKEN = 4  # of a line of JSON: English has some 4 characters a token
WARMUP_RATIO = 0.03
NEED_VALIDATION_FILE = ("eval_steps", "early_stopping", "promote_best")


def auto_epochs(n_examples: int) -> int:
    """OpenAI's rule (its cookbook): start at 3 and keep examples x epochs within 100 to 25,000."""
    if 3 * n_examples < 100:
        return min(25, 100 // n_examples)
    if 3 * n_examples > 25_000:
        return max(1, 25_000 // n_examples)
    return 3


def auto_batch_size(n_examples: int, most: int) -> int:
    """Examples per step: small batches suit LoRA ("LoRA Without Regret"), so at least 32 steps an epoch, and no more
    than `most`, which is the base model's own bound.
    """
    return max(1, min(most, n_examples // STEPS_PER_EPOCH))


def filling_batch_size(context: ResolutionContext, n_epochs: int) -> int:
    """Examples per step that keep the GPUs of a job busy, if the run still has FILLED_STEPS steps; 0 without a GPU.

    As long as a step has too few tokens, a GPU waits for its kernels to be launched, however small the step is.
    """
    tokens_per_example = context.file_bytes / BYTES_PER_TOKEN / context.n_examples
    filling = math.ceil(context.gpus * launch_tokens(context.entry) / max(1.0, tokens_per_example))
    return min(filling, n_epochs * context.n_examples // FILLED_STEPS, MAX_BATCH_SIZE)


def launch_tokens(entry: CatalogEntry) -> float:
    """The tokens that an H100 computes, forward and backward, while the kernels of one batch are launched: 8,000 for
    0.6B parameters, 700 for 8B; 0 for an entry without layers.
    """
    seconds = entry.decoder_layers * LAYER_KERNELS * KERNEL_SECONDS
    active = entry.parameters - entry.expert_parameters * (1 - entry.active_experts)
    return seconds * REFERENCE_FLOPS / (4 * max(1.0, active))


def auto_learning_rate(reference: float, steps: int, steps_per_epoch: int, lora: LoraSpec) -> float:
    """The peak rate of a run of `steps` optimizer steps; `reference` is the base model's own.

    A short run needs a higher rate, because it has fewer steps; a long one overfits, above all over many epochs. So the
    rate falls slowly with steps x epochs, with the sixteenth root: 1.56 times the reference for a single step, 0.88
    times it for 9,000. One step of Adam moves B A x by about rate x scale x rank, so a larger scale x rank means a
    lower rate. It is rounded to two digits, as it is not known more exactly.
    """
    epochs = max(1.0, steps / steps_per_epoch)
    by_length = (REFERENCE_LENGTH / (steps * epochs)) ** (1 / 16)
    by_strength = min(1.0, REFERENCE_STRENGTH / _strength(lora))  # a higher rate for less would upset A
    return float(f"{reference * by_length * by_strength:.1e}")


def _strength(lora: LoraSpec) -> float:
    """scale x rank, with the scale alpha / r (arXiv 2106.09685) or, in rsLoRA, alpha / sqrt(r) (arXiv 2312.03732)."""
    return lora.alpha * (math.sqrt(lora.r) if lora.use_rslora else 1.0)


class TrainingParameters(Parameters):
    learning_rate_multiplier: Annotated[float, Field(ge=1e-6, le=10_000, examples=[2]), Auto(1.0)]
    """Times the automatic learning rate, of which methods with preferences take a part; 1 by default."""
    learning_rate: Annotated[float, Field(ge=LEARNING_RATE.minimum, le=LEARNING_RATE.maximum, examples=[2e-4]), Auto()]
    """Absolute; excludes a multiplier. By default the base model's, adjusted to the run's length."""
    n_epochs: Annotated[
        int,
        Field(title="Epochs", ge=1, le=50, examples=[3]),
        Auto(rule=lambda context, _: auto_epochs(context.n_examples)),
    ]
    """Passes over the data; OpenAI's rule by default."""
    batch_size: Annotated[
        int,
        Field(ge=1, le=MAX_BATCH_SIZE, examples=[8]),
        Auto(
            rule=lambda context, values: max(
                auto_batch_size(context.n_examples, context.entry.max_auto_batch_size),
                filling_batch_size(context, values["n_epochs"]),
            )
        ),
    ]
    """Examples per optimizer step; by default examples / 32, at most 8. More where a GPU waits for small steps and the
    run keeps 1,000 steps."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1, examples=[0.03]), Auto(WARMUP_RATIO)]
    """Share of the steps; 0.03 by default."""
    # 0 to 0.1 are in use
    weight_decay: Annotated[float, Field(ge=0, le=100, examples=[0.01]), Auto(0.0)]
    """0 by default."""
    # large numbers are in use to turn clipping off
    max_grad_norm: Annotated[float, Field(ge=1e-6, le=1e12, examples=[1]), Auto(1.0)]
    """1 by default."""
    optimizer: Annotated[OptimizerName, Field(examples=["adamw_8bit"]), Auto("adamw")]
    """adamw by default: its two moments take 8 bytes for each trained parameter. Those of adamw_8bit
    take 2, and the result differs by their rounding."""
    lr_scheduler_type: Annotated[Literal["linear", "cosine", "constant"], Field(examples=["cosine"]), Auto("linear")]
    """linear by default."""
    context_length: Annotated[
        int,
        Field(ge=2, examples=[2048]),
        AtMost(lambda context: context.entry.context_length),
        Auto(rule=lambda context, _: context.entry.context_length),
    ]
    """In tokens; the base model's by default. Longer is cut."""
    packing: Annotated[bool, Field(examples=[True]), Auto(True)]
    """Several examples in one packed batch; never changes the result. true by default."""
    max_steps: Annotated[int, Field(ge=1, le=MAX_STEPS, examples=[100]), Auto()]
    """Stop after so many optimizer steps."""


def _early_stopping(value: Any) -> EarlyStopping | None:
    if value is False:
        return None
    if value is not True and not isinstance(value, Mapping):
        text = f'{as_json(value)} is not true, false or {{"patience": 3, "threshold": 0}}'
        raise ParameterError(text, code="invalid_type")
    return EarlyStopping.model_validate({} if value is True else dict(value))


class EvaluationParameters(Parameters):
    """What is measured on the validation file. Without early stopping the last adapter is the result."""

    early_stopping: Annotated[
        EarlyStopping,
        Field(
            description="End when the full validation loss was not more than `threshold` nats below its lowest in "
            "`patience` validations in a row. Off by default. Needs a validation_file.",
            examples=[{"patience": 3, "threshold": 0}],
        ),
        PlainValidator(_early_stopping),
        WithJsonSchema({"anyOf": [EarlyStopping.model_json_schema(), {"type": "boolean"}]}),
        Auto(),
    ]
    eval_steps: Annotated[int, Field(title="Steps between validations", ge=1, le=MAX_STEPS, examples=[50]), Auto()]
    """Optimizer steps between validations; at the end of each epoch by default. Needs a validation_file."""
    promote_best: Annotated[
        bool,
        Field(
            validation_alias=AliasChoices("promote_best", "load_best_model_at_end"),
            description="The result is the adapter with the lowest full validation loss, not the last one. On with "
            "early_stopping, else off. Needs a validation_file.",
            examples=[True],
        ),
        Auto(rule=lambda _, values: values["early_stopping"] is not None),
    ]


class QuantizationParameters(Parameters):
    """How the frozen base is held. Absent means QLoRA (4-bit NF4, double quantization, bf16 compute); an explicit
    null means 16-bit LoRA.
    """

    prefix: ClassVar[str] = "quantization."

    bits: Annotated[Literal[4, 8], Field(examples=[4]), Auto(4)]
    """Bits per weight of the frozen base; 4 by default."""
    type: Annotated[
        Literal["nf4", "fp4"],
        Field(examples=["nf4"]),
        Auto(),
    ]
    """Of 4 bits; NF4 by default."""
    compute_dtype: Annotated[Literal["bfloat16", "float16", "float32"], Field(examples=["bfloat16"]), Auto("bfloat16")]
    """bfloat16 by default; without instructions for it float16 on a GPU, float32 on a CPU."""
    double_quant: Annotated[
        bool,
        Field(examples=[True]),
        Auto(),
    ]
    """Of 4 bits: quantize the block scales too; true by default."""


HYPERPARAMETERS: tuple[type[Parameters], ...] = (TrainingParameters, EvaluationParameters)
