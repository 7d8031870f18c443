"""KTO (arXiv 2402.01306): answers that are desirable or not, one by one, without pairs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.domain.jobs.definitions import Auto, Parameters
from app.domain.methods.method import Beta, Method


class KtoParameters(Parameters):
    beta: Annotated[Beta, Auto(0.1)]  # TRL's and the paper's default
    desirable_weight: Annotated[float, Field(ge=1e-3, le=1000, examples=[1.33]), Auto(1.0)]
    """Of the method kto alone: the weight of desirable answers (label true) in the loss; 1 by default."""
    undesirable_weight: Annotated[float, Field(ge=1e-3, le=1000, examples=[1]), Auto(1.0)]
    """Of the method kto alone: the weight of undesirable answers (label false) in the loss; 1 by default."""


KTO = Method(
    name="kto",
    title="KTO: learn which answers are desirable",
    rows="desirable and undesirable answers",
    formats=("labelled",),
    metrics=("reward_desirable", "reward_undesirable", "kl"),
    untrainable="answers without a token to train on",
    nothing_trainable="No answer has a token to train on within {context_length:,} tokens: every one is empty, or "
    "begins after the truncation. Write the answers",
    parameters=KtoParameters,
    rate_factor=0.1,  # the paper and TRL advise the rates that pairs have: 5e-7 to 5e-6
    extra_forwards=lambda _: 3,  # the reference, and the mismatched answers with the adapter and with the reference
    min_batch_size=2,  # an answer is compared with that of another example of the step
)
