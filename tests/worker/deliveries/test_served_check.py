"""The verdicts, by the measured pairs that they were chosen for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.deliveries.served_check import (
    FAILING,
    ReferencePrompt,
    ServedPrompt,
    ServedReference,
    Verdict,
    explain,
    judge,
)

TOKENS = 200
NOISE, EFFECT = 0.0015, 1.862  # measured: SmolLM2-135M-Instruct with an adapter for support tickets


def reference(noise: float = NOISE, effect: float = EFFECT, top1_agreement: float = 1.0) -> ServedReference:
    prompt = ReferencePrompt(
        tokens=list(range(TOKENS + 1)),
        positions=list(range(1, TOKENS + 1)),
        base=[-effect - 0.1] * TOKENS,
        adapter=[-0.1] * TOKENS,
        top=list(range(TOKENS)),
    )
    return ServedReference(
        dtype="bfloat16", source="validation_file", noise=noise, top1_agreement=top1_agreement, prompts=[prompt]
    )


def served(
    of: ServedReference, difference: float = 0.0, effect: float | None = None, wrong_tops: int = 0
) -> list[ServedPrompt]:
    (prompt,) = of.prompts
    adapter = [value - difference for value in prompt.adapter]
    base = prompt.base if effect is None else [value - effect for value in adapter]
    return [ServedPrompt(base, adapter, [-1] * wrong_tops + prompt.top[wrong_tops:])]


@pytest.mark.parametrize(
    ("what", "difference", "wrong_tops", "verdict"),
    [
        ("vLLM in float32", 0.0000, 0, Verdict.SAME),
        ("vLLM in bfloat16", 0.0017, 0, Verdict.SAME),
        ("the merged model in bfloat16", 0.0021, 0, Verdict.SAME),
        ("an 8-bit base in llama.cpp", 0.0027, 0, Verdict.SAME),
        ("one most likely token in a hundred differs", 0.0017, 2, Verdict.UNCLEAR),
        ("between 4 and 8 times the noise", 0.0090, 0, Verdict.UNCLEAR),
        ("a base in NF4", 0.0124, 1, Verdict.DIFFERS),
        ("a scale of 0.8", 0.0195, 3, Verdict.DIFFERS),
        ("another checkpoint of the job", 0.0214, 2, Verdict.DIFFERS),
        ("attention layers only", 0.520, 31, Verdict.DIFFERS),
    ],
)
def test_measured_pairs_get_their_verdict(what: str, difference: float, wrong_tops: int, verdict: Verdict) -> None:
    assert judge(reference(), served(reference(), difference, wrong_tops=wrong_tops)).verdict == verdict, what


def test_an_engine_that_answers_as_the_base_does_has_no_effect() -> None:
    assert judge(reference(), served(reference(), EFFECT, effect=0.0)).verdict == Verdict.NO_EFFECT
    assert judge(reference(), served(reference(), EFFECT, effect=0.09)).verdict == Verdict.NO_EFFECT  # scaled by 0.01


def test_an_adapter_that_changes_less_than_rounding_cannot_be_checked() -> None:
    of = reference(effect=0.001)
    assert judge(of, served(of, effect=0.0)).verdict == Verdict.TOO_SMALL_TO_TELL


@pytest.mark.parametrize(
    ("of", "difference", "wrong_tops"),
    [
        # Eight steps of the same model: a noise of 0.0137, and 6 of 636 most likely tokens differ in vLLM.
        (reference(noise=0.0137, effect=1.503, top1_agreement=0.99686), 0.0170, 2),
        (reference(noise=0.03, top1_agreement=0.978), 0.0359, 7),
    ],
    ids=["another adapter", "uncertain text"],
)
def test_an_adapter_is_judged_by_its_own_noise(of: ServedReference, difference: float, wrong_tops: int) -> None:
    assert judge(of, served(of, difference, wrong_tops=wrong_tops)).verdict == Verdict.SAME


@pytest.mark.parametrize(("wrong_tops", "verdict"), [(1, Verdict.SAME), (2, Verdict.UNCLEAR)])
def test_one_disagreement_among_few_tokens_decides_nothing(wrong_tops: int, verdict: Verdict) -> None:
    """Measured: 70 expected tokens of answers from vLLM in float32, and 1 other most likely token."""
    of = reference(noise=0.0091, effect=10.8)
    (whole,) = served(of, 0.0047)
    tops = [-1] * wrong_tops + list(whole.top[wrong_tops:71])
    part = ServedPrompt(whole.base[:70], whole.adapter[:70], tops, is_generated=True)
    assert judge(of, [part]).verdict == verdict


@pytest.mark.parametrize(
    ("effect", "count", "verdict"),
    [(0.02, 100, Verdict.UNCLEAR), (0.0, 100, Verdict.NO_EFFECT), (0.0, 15, Verdict.UNCLEAR)],
    ids=["other log-probabilities", "the same", "a few tokens"],
)
def test_answers_of_the_base_model_have_no_effect_if_their_log_probabilities_are_the_same(
    effect: float, count: int, verdict: Verdict
) -> None:
    """Base model and adapter generate the same tokens, and each of them differs from the expected ones at once."""
    effects = [effect] * count
    answers = ServedPrompt([], [], [-1], is_generated=True, is_answer_of_base=True, generated_effects=effects)
    assert judge(reference(effect=0.075), [answers]).verdict == verdict


@given(noise=st.floats(0, 0.1), effect=st.floats(0, 5), difference=st.floats(0, 5), engine_effect=st.floats(0, 5))
def test_every_verdict_has_a_sentence_with_its_numbers(
    noise: float, effect: float, difference: float, engine_effect: float
) -> None:
    of = reference(noise, effect)
    check = judge(of, served(of, difference, engine_effect))
    text = explain(check, "vLLM", "ft:x", "ftjob-1")
    assert f"{check.difference:.4f}" in text
    assert ("merged export" in text) == (check.verdict in FAILING)
