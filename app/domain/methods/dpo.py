"""DPO (arXiv 2305.18290), and IPO (2310.12036) and SimPO (2405.14734), which differ from it only in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from app.domain.jobs.definitions import Auto, ParameterError, Parameters, ResolutionContext
from app.domain.jobs.hyperparameters import Hyperparameters
from app.domain.methods.method import Beta, Method

SIMPO_GAMMA = 0.5  # TRL's default; the paper has 0.3 to 1.6
# 0.1 is TRL's default, and the low end of DPO's paper (0.1 to 0.5). SimPO has its paper's 2: its rewards are means over
# tokens, not sums, so that with TRL's 0.1 a difference of one nat a token would never reach a margin of 0.5.
SIMPO_BETA, BETA = 2.0, 0.1


def _of_simpo(value: float, info: ValidationInfo[ResolutionContext]) -> float:
    if info.data.get("loss_type") != "simpo":
        raise ParameterError('belongs to loss_type "simpo"; set that, or leave this out', code="conflicting_parameters")
    return value


def _is_simpo(values: Mapping[str, Any]) -> bool:
    return bool(values["loss_type"] == "simpo")


class DpoParameters(Parameters):
    loss_type: Annotated[Literal["sigmoid", "ipo", "simpo"], Field(examples=["ipo"]), Auto()]
    """Of the method dpo alone: the loss of a pair. sigmoid (DPO) by default."""
    beta: Annotated[Beta, Auto(rule=lambda _, values: SIMPO_BETA if _is_simpo(values) else BETA)]
    simpo_gamma: Annotated[
        float,
        Field(title="SimPO gamma", ge=0, le=10, examples=[0.5]),
        AfterValidator(_of_simpo),
        Auto(rule=lambda _, values: SIMPO_GAMMA if _is_simpo(values) else None),
    ]
    """Of the loss simpo alone: the margin by which the preferred answer must win; 0.5 by default."""


def _absent(hyperparameters: Hyperparameters) -> tuple[str, ...]:
    if hyperparameters.loss_type is None:  # a job of a release with DPO's loss alone
        return "loss_type", "simpo_gamma"
    return () if hyperparameters.loss_type == "simpo" else ("simpo_gamma",)


DPO = Method(
    name="dpo",
    title="DPO: learn a preference between two answers",
    rows="preference pairs",
    formats=("preference",),
    metrics=("reward_accuracy", "reward_margin"),
    untrainable="pairs without two different answers",
    nothing_trainable="No pair has two different answers within {context_length:,} tokens. Give each pair "
    "two different outputs",
    parameters=DpoParameters,
    absent=_absent,
    # Published pairs of both stages differ by 4 (OLMo 7B: 2e-6, 5e-7) to 40 (Zephyr 7B with QLoRA: 2e-4, 5e-6); in the
    # middle of those, on a log scale, is a tenth.
    rate_factor=0.1,
    extra_forwards=lambda hyperparameters: 0 if hyperparameters.loss_type == "simpo" else 1,  # of the reference
    has_pairs=True,
)
