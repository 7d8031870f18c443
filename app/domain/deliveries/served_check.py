"""The check of a served adapter: does the engine compute what was trained?

The trainer records the log-probability of each expected token of some held-out answers, under the base model and under
the adapter, in a 16-bit pass, and the noise of that pass: its mean difference from a float32 pass. After a delivery the
same tokens go to the engine. All differences are means over the expected tokens, in nats. A fixed limit would not do:
the noise is twenty times larger on uncertain text than on certain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

MAX_PROMPTS = 16
MAX_PROMPT_TOKENS = 512
NO_EFFECT_SHARE = 0.1  # of the trainer's effect: an adapter whose names match nothing has an effect of exactly 0
SAME_NOISES, DIFFERENT_NOISES = 4.0, 8.0
MIN_TOP1_AGREEMENT = 0.995
# Kernels differ by this even in float32. The floor of the noise is for answers that both passes are certain of.
MIN_NOISE = 2e-4
MIN_ANSWER_TOKENS = 16  # that an engine must have generated as expected; fewer tell too little


class Verdict(StrEnum):
    SAME = "same"
    DIFFERS = "differs"
    NO_EFFECT = "no_effect"
    UNCLEAR = "unclear"
    TOO_SMALL_TO_TELL = "too_small_to_tell"
    UNCHECKED = "unchecked"  # the trainer recorded nothing to compare with


FAILING = frozenset({Verdict.DIFFERS, Verdict.NO_EFFECT})


class ReferencePrompt(BaseModel):
    """One held-out conversation, and the log-probabilities of its expected tokens, in the order of `positions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: list[int]
    positions: list[int]  # of the expected tokens in `tokens`; never 0
    base: list[float]
    adapter: list[float]
    top: list[int]  # the most likely token under the adapter


class ServedReference(BaseModel):
    """What the trainer recorded: `noise` and `top1_agreement` are between the 16-bit and the float32 pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    source: str  # "validation_file" or "training_file"
    noise: float
    top1_agreement: float
    prompts: list[ReferencePrompt]

    @property
    def effect(self) -> float:
        """mean |base - adapter| of the trainer."""
        return _mean([abs(b - a) for each in self.prompts for b, a in zip(each.base, each.adapter, strict=True)])


class ServedPrompt(NamedTuple):
    """What the engine returned for one prompt, in the order of the prompt's `positions`.

    One that was generated ends where the engine's answer differs from the expected one: `top` has one token more than
    `adapter`, and `base` may be shorter than both.
    """

    base: Sequence[float]
    adapter: Sequence[float]
    top: Sequence[int]
    is_generated: bool = False
    is_answer_of_base: bool = False  # base model and adapter generated the same tokens


class ServedCheck(BaseModel):
    """The verdict with its numbers, in nats per expected token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    prompts: int
    tokens: int
    noise: float
    trainer_effect: float
    engine_effect: float
    difference: float
    largest_difference: float
    top1_agreement: float
    method: Literal["prompt", "answer"] = "prompt"
    reason: str | None = None  # of `unchecked`


def judge(reference: ServedReference, served: Sequence[ServedPrompt]) -> ServedCheck:
    """Compare the engine's log-probabilities with the trainer's."""
    pairs = list(zip(reference.prompts, served, strict=True))
    differences = [
        abs(ours - theirs)
        for prompt, found in pairs
        for ours, theirs in zip(prompt.adapter, found.adapter, strict=not found.is_generated)
    ]
    effects = [  # (the trainer's, the engine's) where the engine's is known
        (abs(base - adapter), abs(served_base - served_adapter))
        for prompt, found in pairs
        for base, adapter, served_base, served_adapter in zip(
            prompt.base, prompt.adapter, found.base, found.adapter, strict=not found.is_generated
        )
    ]
    agreeing = [
        ours == theirs
        for prompt, found in pairs
        for ours, theirs in zip(prompt.top, found.top, strict=not found.is_generated)
    ]
    is_generated = any(found.is_generated for found in served)
    check = ServedCheck(
        verdict=Verdict.UNCLEAR,
        prompts=len(pairs),
        tokens=len(differences),
        noise=reference.noise,
        trainer_effect=_mean([ours for ours, _ in effects]) if effects else reference.effect,
        engine_effect=_mean([theirs for _, theirs in effects]),
        difference=_mean(differences),
        largest_difference=max(differences, default=0.0),
        top1_agreement=_mean(list(map(float, agreeing))),
        method="answer" if is_generated else "prompt",
    )
    if is_generated and not all(found.is_answer_of_base for found in served) and len(differences) < MIN_ANSWER_TOKENS:
        return check
    return check.model_copy(update={"verdict": _verdict(reference, check)})


def unchecked(reason: str) -> ServedCheck:
    """The check of an adapter for which there is nothing to compare with."""
    return ServedCheck(
        verdict=Verdict.UNCHECKED,
        prompts=0,
        tokens=0,
        noise=0.0,
        trainer_effect=0.0,
        engine_effect=0.0,
        difference=0.0,
        largest_difference=0.0,
        top1_agreement=0.0,
        reason=reason,
    )


def explain(check: ServedCheck, target: str, model: str) -> str:
    """The verdict in a sentence, with its numbers and what to do."""
    numbers = (
        f"over {check.tokens} expected tokens of {check.prompts} prompts the log-probabilities differ by "
        f"{check.difference:.4f} on average from the trainer's (its own rounding: {check.noise:.4f}); the adapter "
        f"changes them by {check.engine_effect:.4f} there and by {check.trainer_effect:.4f} in the trainer"
    )
    match check.verdict:
        case Verdict.NO_EFFECT:
            return (
                f"{target} answers for {model} as the base model does: {numbers}. The names of the adapter's tensors "
                "match no module that it serves. Serve the merged export, or a release of the engine with the model"
            )
        case Verdict.DIFFERS:
            return (
                f"{target} serves {model} with other outputs than those of the training: {numbers}. Check that it "
                "serves the base model of the adapter, unquantized, and see `compatibility` of the job; "
                "the merged export is served alike everywhere"
            )
        case Verdict.UNCLEAR:
            return f"{target} serves {model} with a difference that rounding does not explain well: {numbers}"
        case Verdict.TOO_SMALL_TO_TELL:
            return f"The adapter changes less than rounding does, so {target} cannot be checked: {numbers}"
        case Verdict.UNCHECKED:
            return f"{target} serves {model}, and nothing was compared: {check.reason}"
        case Verdict.SAME:
            return f"{target} serves {model} as it was trained: {numbers}"


def _verdict(reference: ServedReference, check: ServedCheck) -> Verdict:
    noise = max(reference.noise, MIN_NOISE)
    if check.trainer_effect < noise:
        return Verdict.TOO_SMALL_TO_TELL
    if check.engine_effect < NO_EFFECT_SHARE * check.trainer_effect:
        return Verdict.NO_EFFECT
    if check.difference > DIFFERENT_NOISES * noise:
        return Verdict.DIFFERS
    # Rounding alone changes the most likely token where two are nearly equal. Measured between two 16-bit programs: 1.5
    # to 3 times as often as between the trainer's own passes.
    min_agreement = min(MIN_TOP1_AGREEMENT, 1 - SAME_NOISES * (1 - reference.top1_agreement))
    is_same = check.difference <= SAME_NOISES * noise and check.top1_agreement >= min_agreement
    return Verdict.SAME if is_same else Verdict.UNCLEAR


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
