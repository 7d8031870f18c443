"""Variants of LoRA in a request, and what a continued adapter decides."""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.definitions import ParentAdapter
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec, LoraSpec, QuantizationSpec
from app.domain.planning.adapter_size import adapter_parameters
from app.errors import BadRequest
from tests.sentences import Reviewed

LAYERS = {
    f"model.layers.{number}.{name}": size
    for number in range(2)
    for name, size in {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "mlp.up_proj": (128, 64)}.items()
}
ENTRY = CatalogEntry(
    architecture="LlamaForCausalLM",
    context_length=2048,
    hidden_size=64,
    vocab_size=300,
    parameters=1000,
    size_bytes=2000,
    target_modules={"q_proj": (64, 64), "v_proj": (32, 64), "up_proj": (128, 64)},
    layers=LAYERS,
    whole_modules=("embed_tokens", "input_layernorm", "lm_head", "norm"),
    learning_rate=1e-3,
    has_chat_template=True,
)
MIXTURE = ENTRY.model_copy(
    update={
        "expert_parameters": 500,
        "experts": {
            f"model.layers.{number}.mlp.experts.{name}": (4, 64, 64)
            for number in range(2)
            for name in ("gate_up_proj", "down_proj")
        },
    }
)
EXPERT_NAMES = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
OLDER_ENTRY = ENTRY.model_copy(update={"layers": {}, "whole_modules": ()})
EARLIER = LoraSpec(
    r=4, alpha=6, dropout=0.1, target_modules=("q_proj", "v_proj"), use_dora=True, rank_pattern={"v_proj": 2},
    modules_to_save=("norm",),
)  # fmt: skip
PARENT = ParentAdapter("ft:base:tunery::0a1b2c3d", EARLIER)


def spec_of(entry: CatalogEntry = ENTRY, parent: ParentAdapter | None = None, **body: Any) -> JobSpec:
    return resolve(body, "base", entry, 100, parent)


def refusal(entry: CatalogEntry = ENTRY, parent: ParentAdapter | None = None, **body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        spec_of(entry, parent, **body)
    return caught.value


class TestVariants:
    def test_what_is_requested_is_in_the_spec(self) -> None:
        asked = {
            "use_dora": True,
            "rank_pattern": {"q_proj": 64, r"layers\.1\..*up_proj": 8},
            "alpha_pattern": {"v_proj": 3.5},
            "modules_to_save": ["norm", "lm_head"],
        }
        lora = spec_of(lora=asked).lora
        assert lora.use_dora
        assert lora.rank_pattern == asked["rank_pattern"]
        assert lora.alpha_pattern == asked["alpha_pattern"]
        assert lora.modules_to_save == ("lm_head", "norm")

    def test_absent_and_null_mean_none_of_it(self) -> None:
        nothing = dict.fromkeys(("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"))
        assert spec_of(seed=1, lora=nothing) == spec_of(seed=1)

    def test_names_of_modules_may_be_one_text(self) -> None:
        assert spec_of(lora={"modules_to_save": "norm, lm_head"}).lora.modules_to_save == ("lm_head", "norm")

    def test_an_invalid_parameter_is_refused_by_name(self, reviewed: Reviewed) -> None:
        refused: list[tuple[str, Any]] = [
            ("lora.rank_pattern", {"rank_pattern": ["q_proj"]}),
            ("lora.rank_pattern", {"rank_pattern": {"q_proj": 0}}),
            ("lora.rank_pattern", {"rank_pattern": {"q_proj": 257}}),
            ("lora.rank_pattern", {"rank_pattern": {"q_proj": True}}),
            ("lora.rank_pattern", {"rank_pattern": {"q_proj": 2.5}}),
            ("lora.rank_pattern", {"rank_pattern": {"v_proj": 33}}),
            ("lora.rank_pattern", {"rank_pattern": {"k_proj": 2}}),
            ("lora.rank_pattern", {"rank_pattern": {"v_proj": 2}, "target_modules": ["q_proj"]}),
            ("lora.rank_pattern", {"rank_pattern": {"(": 2}}),
            ("lora.rank_pattern", {"rank_pattern": {r"(q)\1": 2}}),
            ("lora.alpha_pattern", {"alpha_pattern": {r"(\w|.|[^!])" * 20 + "!": 2}}),
            ("lora.rank_pattern", {"rank_pattern": {"q_proj": 2, "self_attn.*": 3}}),
            ("lora.alpha_pattern", {"alpha_pattern": {"q_proj": 0}}),
            ("lora.alpha_pattern", {"alpha_pattern": {"q_proj": float("inf")}}),
            ("lora.alpha_pattern", {"alpha_pattern": {"q_proj": "2"}}),
            ("lora.modules_to_save", {"modules_to_save": [1]}),
            ("lora.modules_to_save", {"modules_to_save": ["q_proj"]}),
            ("lora.modules_to_save", {"modules_to_save": ["wte"]}),
            ("lora.use_dora", {"use_dora": 1}),
            ("lora.bias", {"bias": "all"}),
            ("lora.init", {"init": "pissa"}),
            ("lora.init_lora_weights", {"init_lora_weights": "pissa"}),
        ]
        for param, lora in refused:
            error = refusal(lora=lora)
            assert error.param == param
            reviewed(error.message)

    def test_a_base_model_registered_before_its_layers_were_kept_leaves_the_check_to_the_worker(self) -> None:
        assert spec_of(OLDER_ENTRY, lora={"rank_pattern": {"no_such": 2}, "modules_to_save": ["no_such"]})
        assert refusal(OLDER_ENTRY, lora={"rank_pattern": {"(": 2}}).param == "lora.rank_pattern"


class TestTargetParameters:
    @pytest.mark.parametrize("name", ["mlp.experts.down_proj", "experts.down_proj", "down_proj"])
    def test_a_name_may_begin_at_any_dot(self, name: str) -> None:
        assert spec_of(MIXTURE, lora={"target_parameters": [name]}).lora.target_parameters == (name,)

    def test_an_invalid_target_is_refused(self, reviewed: Reviewed) -> None:
        refused: list[tuple[CatalogEntry, Any]] = [
            (ENTRY, {"target_parameters": ["mlp.experts.down_proj"]}),
            (MIXTURE, {"target_parameters": ["experts.up_proj"]}),
            (MIXTURE, {"target_parameters": ["wn_proj"]}),
            (MIXTURE, {"target_parameters": {"a": 1}}),
            (MIXTURE, {"target_parameters": EXPERT_NAMES, "dropout": 0.1}),
            (MIXTURE, {"target_parameters": EXPERT_NAMES, "use_dora": True}),
            (MIXTURE, {"target_parameters": EXPERT_NAMES, "experts": True}),
            (ENTRY, {"experts": True}),
            (MIXTURE, {"experts": True, "dropout": 0.1, "use_dora": True}),
            (MIXTURE, {"experts": "yes"}),
        ]
        for entry, lora in refused:
            error = refusal(entry, lora=lora)
            assert error.param == ("lora.target_parameters" if "target_parameters" in lora else "lora.experts")
            reviewed(error.message)

    def test_all_experts_are_adapted_by_one_word_which_is_stored_only_when_true(self) -> None:
        adapted, frozen = (spec_of(MIXTURE, lora={"experts": each}).lora for each in (True, "auto"))
        assert (adapted.experts, adapted.adapts_experts, frozen.adapts_experts) == (True, True, False)
        assert ("experts" in adapted.model_dump(), "experts" in frozen.model_dump()) == (True, False)
        of_experts = 2 * 2 * 4 * adapted.r * (64 + 64)  # layers, matrices and experts of each
        assert adapter_parameters(MIXTURE, adapted) - adapter_parameters(MIXTURE, frozen) == of_experts

    def test_a_mixture_registered_without_torch_leaves_the_names_to_the_trainer(self) -> None:
        unchecked = MIXTURE.model_copy(update={"experts": {}})
        assert spec_of(unchecked, lora={"target_parameters": ["anything"]}).lora.target_parameters == ("anything",)


class TestLayerPatterns:
    def test_layer_patterns_are_the_layers_that_the_patterns_match(self) -> None:
        spec = spec_of(lora={"rank_pattern": {r"layers\.1\..*up_proj": 8}})
        (name,) = (name for name in LAYERS if "layers.1." in name and "up_proj" in name)
        assert spec.lora.rank_pattern == {r"layers\.1\..*up_proj": 8}
        assert spec.layer_lora.rank_pattern == {re.escape(name): 8}
        assert spec.layer_lora.model_copy(update={"rank_pattern": {}}) == spec.lora.model_copy(
            update={"rank_pattern": {}}
        )

    def test_an_earlier_adapter_gives_the_values_that_the_request_omits_and_its_patterns(self) -> None:
        spec = spec_of(parent=PARENT)
        assert (spec.lora, spec.base_model, spec.continued_from) == (EARLIER, "base", PARENT.model)
        assert spec.layer_lora.rank_pattern == {re.escape(name): 2 for name in LAYERS if name.endswith("v_proj")}

    def test_patterns_of_an_earlier_adapter_that_match_nothing_are_refused(self) -> None:
        older = PARENT._replace(lora=EARLIER.model_copy(update={"rank_pattern": {r"v_proj\Z": 2}}))
        error = refusal(parent=older)
        assert error.param == "lora.rank_pattern"

    def test_layer_patterns_are_absent_without_patterns_or_known_layers(self) -> None:
        assert spec_of().layer_patterns is None
        assert spec_of(OLDER_ENTRY, lora={"rank_pattern": {"q_proj": 2}}).layer_patterns is None


class TestEightBits:
    def test_have_no_type_and_no_double_quantization(self) -> None:
        spec = spec_of(quantization={"bits": 8}).quantization
        assert spec == QuantizationSpec(bits=8)
        assert spec is not None
        assert (spec.type, spec.double_quant, spec.compute_dtype) == (None, None, "bfloat16")

    @pytest.mark.parametrize("parameter", [{"type": "nf4"}, {"double_quant": False}])
    def test_refuse_the_parameters_of_4_bits(self, parameter: dict[str, Any]) -> None:
        error = refusal(quantization={"bits": 8} | parameter)
        assert error.param == f"quantization.{next(iter(parameter))}"
        with pytest.raises(ValueError, match="4 bits"):
            QuantizationSpec.model_validate({"bits": 8} | parameter)


class TestParentAdapter:
    def test_an_equal_value_in_the_request_is_no_contradiction(self) -> None:
        asked = {"r": 4, "alpha": 6, "target_modules": "v_proj,q_proj", "use_dora": True, "rank_pattern": {"v_proj": 2}}
        assert spec_of(parent=PARENT, lora=asked | {"modules_to_save": ["norm"]}).lora == EARLIER

    @pytest.mark.parametrize(
        ("lora", "param", "said"),
        [
            ({"r": 8}, "lora.r", "8 contradicts the 4"),
            ({"alpha": 8}, "lora.alpha", "8.0 contradicts the 6.0"),
            ({"target_modules": ["q_proj"]}, "lora.target_modules", '["q_proj"] contradicts the ["q_proj", "v_proj"]'),
            ({"use_rslora": True}, "lora.use_rslora", "true contradicts the false"),
            ({"use_dora": False}, "lora.use_dora", "false contradicts the true"),
            ({"rank_pattern": {}}, "lora.rank_pattern", '{} contradicts the {"v_proj": 2}'),
            ({"alpha_pattern": {"q_proj": 2}}, "lora.alpha_pattern", '{"q_proj": 2.0} contradicts the {}'),
            ({"modules_to_save": ["lm_head"]}, "lora.modules_to_save", '["lm_head"] contradicts the ["norm"]'),
        ],
    )
    def test_a_contradiction_is_refused_with_both_values(self, lora: dict[str, Any], param: str, said: str) -> None:
        error = refusal(parent=PARENT, lora=lora)
        assert (error.param, error.code) == (param, "conflicting_parameters")
        assert said in error.message
        assert PARENT.model in error.message

    def test_dropout_and_the_width_of_the_base_may_be_others(self) -> None:
        spec = spec_of(parent=PARENT, lora={"dropout": 0.3}, quantization={"bits": 8})
        assert spec.lora == EARLIER.model_copy(update={"dropout": 0.3})
        assert spec.quantization == QuantizationSpec(bits=8)
