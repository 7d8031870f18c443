from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.artifacts.engines import (
    PEFT_RELEASE,
    VLLM_MAX_LORA_RANKS,
    Compatibility,
    Engine,
    class_features,
    compatibility,
    incompatibilities,
    job_compatibility,
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


def spec(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate({"r": 16, "alpha": 32, "target_modules": ["q_proj"]} | changes)


@given(FEATURES)
def test_the_compatibility_agrees_with_the_rules_of_the_model_card(features: dict[str, Any]) -> None:
    found = compatibility(spec(**features), "ftjob-1")
    for engine, key in KEYS.items():
        entry = getattr(found, key)
        problems = incompatibilities(engine, spec(**features))
        assert (entry.ok, entry.reasons) == (not problems, [problem.rule.sentence for problem in problems])


@given(FEATURES)
def test_an_engine_that_cannot_serve_the_adapter_has_reasons_and_a_request_that_helps(features: dict[str, Any]) -> None:
    entries = dict(compatibility(spec(**features), "ftjob-1"))
    assert set(entries) == set(Compatibility.model_fields)
    for entry in entries.values():
        assert bool(entry.reasons) == (entry.instead is not None) == (not entry.ok)
        if entry.instead:
            assert entry.instead.path == "/v1/fine_tuning/jobs/ftjob-1/exports"
            assert entry.flags == []


@pytest.mark.parametrize(("r", "maximum"), [(1, 1), (2, 8), (12, 16), (24, 32), (48, 64), (96, 128), (200, 256)])
def test_the_flags_of_vllm_admit_the_rank(r: int, maximum: int) -> None:
    flags = compatibility(spec(r=r), "ftjob-1").vllm.flags
    assert flags == ["--enable-lora", "--max-lora-rank", str(maximum)]
    assert maximum in VLLM_MAX_LORA_RANKS


def test_patterns_are_right_in_this_vllm_and_a_note_names_the_earlier_one() -> None:
    vllm = compatibility(spec(alpha_pattern={"q_proj": 4}), "ftjob-1").vllm
    assert vllm.ok
    assert any("0.16.0" in note for note in vllm.notes)


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
