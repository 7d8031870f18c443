"""The hyperparameters of a request, by subject: training, evaluation, DPO.

CONTRIBUTING.md shows how to add one. Fields are checked, and their problems reported, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from app.domain.error_text.json_text import as_json
from app.domain.jobs.auto_hyperparameters import WARMUP_RATIO, auto_batch_size, auto_epochs
from app.domain.jobs.bounds import EARLY_STOPPING_THRESHOLD, LEARNING_RATE
from app.domain.jobs.parameters.fields import AtMost, Auto, ParameterError, Parameters
from app.domain.jobs.spec import EarlyStopping, Method

MAX_STEPS = 10_000_000
NEED_VALIDATION_FILE = ("eval_steps", "early_stopping", "promote_best")


class TrainingParameters(Parameters):
    learning_rate_multiplier: Annotated[
        float,
        Field(
            ge=1e-6,
            le=10_000,
            description="Times the automatic learning rate, of which DPO takes a tenth; 1 by default.",
            examples=[2],
        ),
        Auto(1.0),
    ]
    learning_rate: Annotated[
        float,
        Field(
            ge=LEARNING_RATE.minimum,
            le=LEARNING_RATE.maximum,
            description="Absolute; excludes a multiplier. By default the base model's, adjusted to the run's length.",
            examples=[2e-4],
        ),
        Auto(),
    ]
    n_epochs: Annotated[
        int,
        Field(ge=1, le=50, description="Passes over the data; OpenAI's rule by default.", examples=[3]),
        Auto(rule=lambda context, _: auto_epochs(context.n_examples)),
    ]
    batch_size: Annotated[
        int,
        Field(
            ge=1,
            le=256,
            description="Examples per optimizer step; by default examples / 32, at most 8.",
            examples=[8],
        ),
        Auto(rule=lambda context, _: auto_batch_size(context.n_examples, context.entry.max_auto_batch_size)),
    ]
    warmup_ratio: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the steps; 0.03 by default.", examples=[0.03]),
        Auto(WARMUP_RATIO),
    ]
    # 0 to 0.1 are in use
    weight_decay: Annotated[float, Field(ge=0, le=100, description="0 by default.", examples=[0.01]), Auto(0.0)]
    # large numbers are in use to turn clipping off
    max_grad_norm: Annotated[float, Field(ge=1e-6, le=1e12, description="1 by default.", examples=[1]), Auto(1.0)]
    lr_scheduler_type: Annotated[
        Literal["linear", "cosine", "constant"],
        Field(description="linear by default.", examples=["cosine"]),
        Auto("linear"),
    ]
    context_length: Annotated[
        int,
        Field(ge=2, description="In tokens; the base model's by default. Longer is cut.", examples=[2048]),
        AtMost(lambda context: context.entry.context_length),
        Auto(rule=lambda context, _: context.entry.context_length),
    ]
    packing: Annotated[
        bool,
        Field(
            description="Several examples in one packed batch; never changes the result. true by default.",
            examples=[True],
        ),
        Auto(True),
    ]
    max_steps: Annotated[
        int, Field(ge=1, le=MAX_STEPS, description="Stop after so many optimizer steps.", examples=[100]), Auto()
    ]


class EarlyStoppingParameters(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    patience: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="The number of consecutive validations without an improvement before training stops.",
            examples=[3],
        ),
    ] = 3
    threshold: Annotated[
        float,
        Field(
            ge=EARLY_STOPPING_THRESHOLD.minimum,
            allow_inf_nan=False,
            description="The decrease of the loss, in nats, that counts as an improvement.",
            examples=[0.01],
            json_schema_extra={"maximum": EARLY_STOPPING_THRESHOLD.maximum},
        ),
    ] = 0


def _early_stopping(value: Any) -> EarlyStopping | None:
    if value is False:
        return None
    if value is not True and not isinstance(value, Mapping):
        text = f'{as_json(value)} is not true, false or {{"patience": 3, "threshold": 0}}'
        raise ParameterError(text, code="invalid_type")
    parameters = EarlyStoppingParameters.model_validate({} if value is True else dict(value))
    if parameters.threshold not in EARLY_STOPPING_THRESHOLD:
        raise ParameterError(f"threshold: {as_json(parameters.threshold)} is not a number {EARLY_STOPPING_THRESHOLD}")
    return EarlyStopping(**vars(parameters))


class EvaluationParameters(Parameters):
    """What is measured on the validation file. Without early stopping the last adapter is the result (decision 13)."""

    early_stopping: Annotated[
        EarlyStopping,
        Field(
            description="End when the full validation loss was not more than `threshold` nats below its lowest in "
            "`patience` validations in a row. Off by default. Needs a validation_file.",
            examples=[{"patience": 3, "threshold": 0}],
        ),
        PlainValidator(_early_stopping),
        WithJsonSchema({"anyOf": [EarlyStoppingParameters.model_json_schema(), {"type": "boolean"}]}),
        Auto(),
    ]
    eval_steps: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_STEPS,
            description="Optimizer steps between validations; at the end of each epoch by default. "
            "Needs a validation_file.",
            examples=[50],
        ),
        Auto(),
    ]
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


class DpoParameters(Parameters):
    beta: Annotated[
        float,
        Field(
            ge=1e-4,
            le=2,  # 0.01 to 0.5 are in use
            description="Of the method dpo alone: the strength of the penalty for moving away from the base model; "
            "0.1 by default.",
            examples=[0.1],
        ),
        Auto(0.1),  # TRL's default, and the low end of what the paper tries (0.1 to 0.5)
    ]


HYPERPARAMETERS: tuple[type[Parameters], ...] = (TrainingParameters, EvaluationParameters)
METHOD_HYPERPARAMETERS: dict[Method, type[Parameters]] = {"dpo": DpoParameters}  # of one method alone
