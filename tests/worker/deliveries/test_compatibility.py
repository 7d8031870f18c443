from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.artifacts.engines import (
    EARLIER_RULES,
    PEFT_RELEASE,
    RELEASES,
    RULES,
    VLLM_MAX_LORA_RANKS,
    Compatibility,
    Engine,
    Feature,
    LoadResult,
    class_features,
    compatibility,
    earlier_incompatibilities,
    incompatibilities,
    job_compatibility,
    vllm_max_lora_rank,
)
from app.domain.jobs.spec import LoraSpec

KEYS = {Engine.VLLM: "vllm", Engine.SGLANG: "sglang", Engine.LLAMA_CPP: "llama_cpp", Engine.OLLAMA: "ollama"}
FEATURES = st.fixed_dictionaries(
    {
        "r": st.integers(1, 256),
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "rank_pattern": st.dictionaries(st.just("q_proj"), st.integers(1, 700)),
        "alpha_pattern": st.dictionaries(st.just("q_proj"), st.floats(1, 64)),
        "modules_to_save": st.sampled_from([(), ("lm_head",)]),
    }
)

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


@given(FEATURES)
def test_the_compatibility_agrees_with_the_rules_of_the_model_card_and_has_a_request_that_helps(
    features: dict[str, Any],
) -> None:
    entries = dict(compatibility(spec(**features), "ftjob-1"))
    assert set(entries) == set(Compatibility.model_fields)
    for engine, key in KEYS.items():
        problems = incompatibilities(engine, spec(**features))
        assert entries[key].reasons == [problem.rule.sentence for problem in problems]
    for entry in entries.values():
        assert bool(entry.reasons) == (entry.instead is not None) == (not entry.ok)
        if entry.instead:
            assert (entry.instead.path, entry.flags) == ("/v1/fine_tuning/jobs/ftjob-1/exports", [])


def test_patterns_are_right_in_this_vllm_and_wrong_in_the_earlier_one_of_a_note() -> None:
    lora = spec(rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 4})
    vllm = compatibility(lora, "ftjob-1").vllm
    assert vllm.ok
    assert any("0.16.0" in note for note in vllm.notes)
    assert [one.feature for one in earlier_incompatibilities(Engine.VLLM, lora)] == ["rank_pattern", "alpha_pattern"]
    assert earlier_incompatibilities(Engine.VLLM, spec()) == earlier_incompatibilities(Engine.LLAMA_CPP, lora) == ()


def test_a_base_model_of_another_class_is_not_known_to_work_where_its_own_class_is_served() -> None:
    found = compatibility(
        spec(), "ftjob-1", class_features("Qwen3ForCausalLM", ["Qwen3_5ForConditionalGeneration"], [])
    )
    assert {key for key, entry in found if not entry.ok} == {"vllm", "sglang", "ollama"}
    assert class_features("Qwen3ForCausalLM", ["Qwen3ForCausalLM"], ["q_proj"]) == set()
    assert class_features("Qwen3ForCausalLM", [], ["q_proj"]) == set()


def test_a_base_model_whose_class_vllm_serves_without_lora_is_refused_there_alone() -> None:
    found = compatibility(spec(), "ftjob-1", class_features("FalconForCausalLM", ["FalconForCausalLM"], []))
    assert {key for key, entry in found if not entry.ok} == {"vllm", "ollama"}
    assert len(found.vllm.reasons) == 1


def test_no_request_merges_an_adapter_of_experts() -> None:
    found = compatibility(spec(target_parameters=["experts.down_proj"]), "ftjob-1")
    assert (found.vllm.ok, found.vllm.instead) == (found.ollama.ok, found.ollama.instead) == (False, None)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("Glm4ForCausalLM", "gate_up_proj", "Refused: vLLM refuses"),
        ("GPTBigCodeForCausalLM", "c_attn", "Wrong answers without an error: vLLM ignores"),
    ],
)
def test_a_layer_that_vllm_does_not_serve_counts_only_if_it_is_adapted(name: str, target: str, words: str) -> None:
    (reason,) = compatibility(spec(), "ftjob-1", class_features(name, [name], [target, "o_proj"])).vllm.reasons
    assert reason.startswith(words)
    assert compatibility(spec(), "ftjob-1", class_features(name, [name], ["o_proj"])).vllm.ok


def test_a_job_has_that_of_its_spec() -> None:
    stored = {"lora": spec(use_dora=True).model_dump(mode="json")}
    assert job_compatibility(stored, "ftjob-1") == compatibility(spec(use_dora=True), "ftjob-1").model_dump(mode="json")


def test_the_release_of_peft_is_the_installed_one() -> None:
    assert version("peft").startswith(PEFT_RELEASE)


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


def test_every_engine_has_rules_and_a_release_that_they_hold_for() -> None:
    assert set(RULES) == set(RELEASES) == set(Engine)
    for engine, rules in EARLIER_RULES.items():
        assert not rules.keys() & RULES[engine].keys()  # else the present release is wrong, too


@given(r=st.integers(1, 256), others=st.lists(st.integers(1, 700), max_size=4))
def test_the_maximum_rank_admits_every_layer_and_is_the_smallest_that_does(r: int, others: list[int]) -> None:
    found = vllm_max_lora_rank(spec(r=r, rank_pattern={f"layer{n}": rank for n, rank in enumerate(others)}))
    largest = max([r, *others])
    if found is None:
        assert largest > 512
    else:
        assert found >= largest
        assert not [rank for rank in VLLM_MAX_LORA_RANKS if largest <= rank < found]
