from __future__ import annotations

import time

import pytest
from peft.utils.other import get_pattern_key

from app.domain.patterns import alpha_of, key_problem, pattern_of, pattern_problems, rank_of, scale_of
from app.domain.spec import LoraSpec

LAYERS = {
    f"model.layers.{number}.{name}": size
    for number in (0, 1, 11)
    for name, size in {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.up_proj": (128, 64)}.items()
}


def lora(**changes: object) -> LoraSpec:
    return LoraSpec.model_validate({"r": 4, "alpha": 8, "target_modules": ["q_proj"]} | changes)


def problems(**changes: object) -> list[str]:
    return [problem.text for problem in pattern_problems(lora(**changes), LAYERS)]


class TestPatternOf:
    @pytest.mark.parametrize(
        "keys",
        [
            ["q_proj"],
            ["self_attn.q_proj", "q_proj"],
            ["model.layers.1.mlp.up_proj"],
            [r"layers\.1\..*"],
            ["layers.1.*"],  # an unescaped dot is any letter: also layers 11
            ["proj"],
            [".*proj"],
            ["q_proj|k_proj"],
            ["[qk]_proj", "up_proj"],
            ["odel.layers.0.self_attn.q_proj"],
        ],
    )
    def test_is_what_peft_takes(self, keys: list[str]) -> None:
        for layer in LAYERS:
            theirs = get_pattern_key(keys, layer)
            assert pattern_of(keys, layer) == (theirs if theirs in keys else None)


class TestNumbers:
    def test_a_layers_own_rank_and_alpha_make_its_scale(self) -> None:
        spec = lora(rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\..*": 12})
        one, eleven = "model.layers.1.self_attn.q_proj", "model.layers.11.mlp.up_proj"
        assert (rank_of(spec, one), alpha_of(spec, one), scale_of(spec, one)) == (2, 12, 6)
        assert (rank_of(spec, eleven), alpha_of(spec, eleven), scale_of(spec, eleven)) == (4, 8, 2)

    def test_rslora_takes_the_root_of_the_layers_own_rank(self) -> None:
        spec = lora(rank_pattern={"q_proj": 16}, use_rslora=True)
        assert scale_of(spec, "model.layers.1.self_attn.q_proj") == 2
        assert scale_of(spec, "model.layers.1.self_attn.k_proj") == 4


class TestProblems:
    def test_of_good_patterns_there_are_none(self) -> None:
        assert problems(rank_pattern={"q_proj": 64, "k_proj": 32}, alpha_pattern={r".*\.(q|k)_proj": 3}) == []

    def test_a_pattern_without_a_target_is_named_with_what_there_is(self) -> None:
        (text,) = problems(alpha_pattern={"gate_proj": 3})
        assert "'gate_proj' fits no target module; targets are k_proj, q_proj, up_proj" in text
        assert "model.layers.0.self_attn.q_proj" in text

    def test_a_rank_above_a_layers_smaller_side_is_named_with_the_layer(self) -> None:
        (text,) = problems(rank_pattern={"k_proj": 33})
        assert text == "'k_proj' gives the layer model.layers.0.self_attn.k_proj the rank 33, but it is only 32 wide"

    def test_two_that_differ_on_one_layer_are_refused_as_json_keeps_no_order(self) -> None:
        (text,) = problems(rank_pattern={"q_proj": 2, "self_attn.*": 3})
        assert "'q_proj' and 'self_attn.*' fit the layer model.layers.0.self_attn.q_proj and differ" in text
        assert problems(rank_pattern={"q_proj": 2, "self_attn.q_proj": 2}) == []

    @pytest.mark.parametrize("key", ["", "x" * 257, "(", "[", "(a+)+", "(.*){9}", "a*b*c*d*", r"(q)\1", "(?=q)q", "*"])
    def test_a_key_that_is_no_expression_or_could_take_for_ever_is_refused(self, key: str) -> None:
        assert key_problem(key) is not None

    def test_the_slowest_key_that_is_allowed_is_quick(self) -> None:
        key = "[a-z._0-9]*[a-z._0-9]*[a-z._0-9]*X"
        assert key_problem(key) is None
        began = time.monotonic()
        assert pattern_of([key], "model.language_model.layers.10.self_attn.q_proj") is None
        assert time.monotonic() - began < 1
