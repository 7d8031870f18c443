from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.artifacts.engines import (
    EARLIER_RULES,
    RELEASES,
    RULES,
    VLLM_MAX_LORA_RANKS,
    Engine,
    Feature,
    LoadResult,
    earlier_incompatibilities,
    incompatibilities,
    vllm_max_lora_rank,
)
from app.domain.jobs.spec import LoraSpec

# What was measured or read, independently of the table in the code: kind -> the engines that compute what PEFT does.
RIGHT: dict[str, set[str]] = {
    "plain": {"vLLM", "llama.cpp", "SGLang"},
    "rank 24": {"vLLM", "llama.cpp", "SGLang"},
    "rsLoRA": {"vLLM"},
    "rank_pattern": {"vLLM", "llama.cpp"},
    "alpha_pattern": {"vLLM"},
    "DoRA": set(),
    "modules_to_save": set(),
    "rank 600": {"llama.cpp"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 16},
    "rank 24": {"r": 24},
    "rsLoRA": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 40}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3}},
    "DoRA": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "rank 600": {"rank_pattern": {"q_proj": 600}},
}


def spec(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate({"r": 16, "alpha": 32, "target_modules": ["q_proj"]} | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_no_problem_exactly_where_an_engine_computes_what_peft_computes(kind: str) -> None:
    lora = spec(**KINDS[kind])
    assert {str(engine) for engine in Engine if not incompatibilities(engine, lora)} == RIGHT[kind]


def test_a_wrong_scale_is_distinguished_from_a_refusal() -> None:
    (problem,) = incompatibilities(Engine.LLAMA_CPP, spec(use_rslora=True))
    assert (problem.feature, problem.rule.result) == (Feature.RSLORA, LoadResult.WRONG)
    (problem,) = incompatibilities(Engine.VLLM, spec(use_dora=True))
    assert (problem.feature, problem.rule.result) == (Feature.DORA, LoadResult.REFUSED)


def test_every_problem_of_an_adapter_is_named_at_once() -> None:
    lora = spec(use_rslora=True, use_dora=True, modules_to_save=["norm"])
    assert [problem.feature for problem in incompatibilities(Engine.SGLANG, lora)] == [
        Feature.RSLORA,
        Feature.DORA,
        Feature.MODULES_TO_SAVE,
    ]


def test_an_earlier_vllm_scales_patterns_wrongly() -> None:
    assert earlier_incompatibilities(Engine.VLLM, spec()) == ()
    assert [one.feature for one in earlier_incompatibilities(Engine.VLLM, spec(**KINDS["rank_pattern"]))] == [
        "rank_pattern"
    ]
    assert earlier_incompatibilities(Engine.LLAMA_CPP, spec(**KINDS["rank_pattern"])) == ()


def test_every_engine_has_rules_and_a_release_that_they_hold_for() -> None:
    assert set(RULES) == set(RELEASES) == set(Engine)
    for engine, rules in EARLIER_RULES.items():
        assert not rules.keys() & RULES[engine].keys()  # else the present release is wrong, too


@pytest.mark.parametrize(
    ("r", "maximum"), [(1, 1), (2, 8), (8, 8), (9, 16), (24, 32), (48, 64), (96, 128), (129, 256), (256, 256)]
)
def test_the_maximum_rank_is_the_next_value_that_vllm_accepts(r: int, maximum: int) -> None:
    assert vllm_max_lora_rank(spec(r=r)) == maximum


@given(r=st.integers(1, 256), others=st.lists(st.integers(1, 700), max_size=4))
def test_the_maximum_rank_admits_every_layer_and_is_the_smallest_that_does(r: int, others: list[int]) -> None:
    found = vllm_max_lora_rank(spec(r=r, rank_pattern={f"layer{n}": rank for n, rank in enumerate(others)}))
    largest = max([r, *others])
    if found is None:
        assert largest > 512
    else:
        assert found >= largest
        assert not [rank for rank in VLLM_MAX_LORA_RANKS if largest <= rank < found]
