from __future__ import annotations

import re
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from app.domain.jobs.layer_patterns import (
    MAX_KEY_CHARACTERS,
    PatternError,
    alpha_of,
    expand_patterns,
    key_problem,
    layer_keys,
    match_patterns,
    rank_of,
    scale_of,
)
from app.domain.jobs.spec import LayerPatterns, LoraSpec
from tests.sentences import Reviewed

LAYERS = {
    f"model.layers.{number}.{name}": size
    for number in (0, 1, 11)
    for name, size in {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.up_proj": (128, 64)}.items()
}
Q, K, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.11.mlp.up_proj"


def lora(**changes: object) -> LoraSpec:
    targets = ["q_proj", "k_proj", "up_proj"]
    return LoraSpec.model_validate({"r": 4, "alpha": 8, "target_modules": targets} | changes)


def matched(**changes: object) -> LayerPatterns:
    patterns = match_patterns(lora(**changes), LAYERS)
    assert patterns is not None
    return patterns


def problems(layers: Mapping[str, tuple[int, int]] = LAYERS, **changes: object) -> list[str]:
    try:
        match_patterns(lora(**changes), layers)
    except PatternError as error:
        return [problem.text for problem in error.problems]
    return []


class TestMatching:
    @pytest.mark.parametrize(
        "key",
        [
            "q_proj",
            "self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
            "^model.layers.1.mlp.up_proj",
            r"layers\.1\..*",
            "layers.1.*",  # an unescaped dot is any letter: also layers 11
            ".*proj",
            "q_proj|k_proj",
            "[qk]_proj",
            r"\w+_proj$",
            r"layers\.\d\..*",
            r"layers\.1{2}\.mlp\.up_proj",
            r"(?i:Q_PROJ)",
            r"(?:q|k)_proj",
            r".*?\.(?P<name>up)_proj",
            r"\bup_proj\b",
            r"layers\.[^1]\..*",
            r"(q_proj)+",
        ],
    )
    def test_finds_the_layers_that_peft_finds(self, key: str) -> None:
        fitting = [layer for layer in LAYERS if get_pattern_key([key], layer) == key]
        assert fitting
        assert matched(rank_pattern={key: 2}).rank_pattern == {re.escape(layer): 2 for layer in fitting}

    @pytest.mark.parametrize("key", ["proj", "odel.layers.0.self_attn.q_proj", "Q_PROJ", "q_proj.weight"])
    def test_finds_nothing_in_the_middle_of_a_name_as_peft_does(self, key: str, reviewed: Reviewed) -> None:
        assert all(get_pattern_key([key], layer) == layer for layer in LAYERS)
        reviewed(problems(rank_pattern={key: 2})[0])

    def test_gives_peft_keys_that_select_the_requested_layers(self) -> None:
        asked = lora(
            rank_pattern={"q_proj": 2, r"layers\.1\..*up_proj": 6}, alpha_pattern={"k_proj": 3, r"layers\.\d\.mlp.*": 1}
        )
        given = expand_patterns(asked, LAYERS)
        for layer in LAYERS:
            rank_key, alpha_key = (get_pattern_key(each, layer) for each in (asked.rank_pattern, asked.alpha_pattern))
            assert rank_of(given, layer) == asked.rank_pattern.get(rank_key, 4)
            assert alpha_of(given, layer) == asked.alpha_pattern.get(alpha_key, 8)
            assert given.rank_pattern.get(get_pattern_key(given.rank_pattern, layer), 4) == rank_of(given, layer)
            assert given.alpha_pattern.get(get_pattern_key(given.alpha_pattern, layer), 8) == alpha_of(given, layer)
        assert given.rank_pattern.keys() <= {re.escape(layer) for layer in LAYERS}

    def test_considers_targets_alone(self) -> None:
        assert matched(target_modules=["q_proj"], rank_pattern={".*": 2}).rank_pattern.keys() == {
            re.escape(layer) for layer in LAYERS if layer.endswith("q_proj")
        }

    def test_no_patterns_need_no_match(self) -> None:
        assert match_patterns(lora(), LAYERS) is None

    def test_patterns_are_matched_once(self) -> None:
        once = expand_patterns(lora(rank_pattern={r"layers\.\d\..*": 2}, alpha_pattern={"q_proj": 3}), LAYERS)
        assert expand_patterns(once, LAYERS) is once


class TestLayerKeys:
    def test_a_name_that_ends_another_one_is_anchored_so_that_peft_takes_it_for_no_other(self) -> None:
        names = ["layers.0.q_proj", "vision.layers.0.q_proj", "text.vision.layers.0.q_proj"]
        spec = lora(target_modules=["q_proj"], rank_pattern={"^layers.0.q_proj": 2, "^vision.layers.0.q_proj": 3})
        layers = dict.fromkeys(names, (64, 64))
        given = expand_patterns(spec, layers)
        assert [rank_of(given, name) for name in names] == [2, 3, 4]
        for keys in (given.rank_pattern, dict(reversed(given.rank_pattern.items()))):
            assert [keys.get(get_pattern_key(keys, name), 4) for name in names] == [2, 3, 4]
        assert expand_patterns(given, layers) is given

    @given(st.sets(st.text(st.sampled_from("ab*.$^\\[(+?{|-_0\u00e9"), min_size=1, max_size=5), min_size=1, max_size=8))
    def test_each_key_matches_its_layer_and_no_other_in_peft(self, names: set[str]) -> None:
        for name, key in layer_keys(names).items():
            assert {other for other in names if re.match(rf"(.*\.)?({key})$", other)} == {name}


class TestNumbers:
    def test_a_layers_own_rank_and_alpha_make_its_scale(self) -> None:
        spec = expand_patterns(lora(rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\..*": 12}), LAYERS)
        one = "model.layers.1.self_attn.q_proj"
        assert (rank_of(spec, one), alpha_of(spec, one), scale_of(spec, one)) == (2, 12, 6)
        assert (rank_of(spec, UP), alpha_of(spec, UP), scale_of(spec, UP)) == (4, 8, 2)

    def test_rslora_takes_the_root_of_the_layers_own_rank(self) -> None:
        spec = expand_patterns(lora(rank_pattern={"q_proj": 16}, use_rslora=True), LAYERS)
        assert (scale_of(spec, Q), scale_of(spec, K)) == (2, 4)


class TestProblems:
    def test_good_patterns_have_no_problems(self) -> None:
        assert problems(rank_pattern={"q_proj": 64, "k_proj": 32}, alpha_pattern={r".*\.(q|k)_proj": 3}) == []

    def test_a_pattern_without_a_target_is_named_with_what_there_is(self, reviewed: Reviewed) -> None:
        (text,) = problems(alpha_pattern={"gate_proj": 3})
        reviewed(text)
        assert "model.layers.0.self_attn.q_proj" in text

    def test_a_rank_above_a_layers_smaller_side_is_named_with_the_layer(self, reviewed: Reviewed) -> None:
        (text,) = problems(rank_pattern={"k_proj": 33})
        reviewed(text)

    def test_two_that_differ_on_one_layer_are_refused_as_json_keeps_no_order(self, reviewed: Reviewed) -> None:
        (text,) = problems(rank_pattern={"q_proj": 2, "self_attn.*": 3})
        reviewed(text)
        assert problems(rank_pattern={"q_proj": 2, "self_attn.q_proj": 2}) == []

    def test_all_of_both_kinds_are_named_at_once(self) -> None:
        found = problems(rank_pattern={"(": 2, "[": 3}, alpha_pattern={"gate_proj": 3})
        assert [text.split(" ")[0] for text in found] == ['"("', '"["', '"gate_proj"']

    def test_what_re2_refuses_is_refused_with_its_reason(self, reviewed: Reviewed) -> None:
        keys = [
            "",
            "x" * 257,
            "(",
            "[",
            ")(",
            "q)|(k",
            "*",
            "a**",
            "a*+",
            r"(q)\1",
            r"q_proj\Z",
            "(?=q)q",
            "(?<!k)_proj",
        ]
        for key in [*keys, "(?>a)", "a{1001}", "(.{30}){30}", r"\pL" * 85, "q{,3}", "q\\"]:
            reviewed(str(key_problem(key)))

    @given(st.text(max_size=20))
    def test_any_text_is_matched_or_refused(self, key: str) -> None:
        try:
            key.encode()
        except UnicodeEncodeError:  # no body with a lone surrogate gets here
            return
        assert key_problem(key) or match_or_problem(key)


def match_or_problem(key: str) -> bool:
    try:
        return match_patterns(lora(rank_pattern={key: 2}), LAYERS) is not None
    except PatternError as error:
        return bool(error.problems)


# Repeated to the full length of a key; each takes Python's `re` exponential time, or many states in RE2.
HOSTILE = [r"(\w|.|[^!])", "(.+)+", ".?", "(.*){9}", r"(.*\.)*", r"[^\d]*", ".*[a-m].{9}", "(.?){9}", "a|", r"\S"]


MANY_LAYERS = {f"model.layers.{n}.{name}_proj": (64, 64) for n in range(1024) for name in ("q", "k", "v", "up")}


def problems_of_many(patterns: dict[str, int]) -> list[str]:
    return problems(MANY_LAYERS, target_modules=["q_proj", "k_proj", "v_proj", "up_proj"], rank_pattern=patterns)


def cpu_seconds(patterns: dict[str, int]) -> float:
    began = time.process_time()
    problems_of_many(patterns)
    return time.process_time() - began


@pytest.fixture(scope="module")
def benign_seconds() -> float:
    benign = {rf"layers\.{number}\..*(up|q)_proj": 2 for number in range(64)}
    assert problems_of_many(benign) == []
    return min(cpu_seconds(benign) for _ in range(3))


class TestTime:
    """RE2 is linear in the text and in the pattern: what was exponential costs what every key costs."""

    @pytest.mark.parametrize(
        "length", [pytest.param(60, marks=pytest.mark.extended("every length of a hostile key")), MAX_KEY_CHARACTERS]
    )
    @pytest.mark.parametrize("unit", HOSTILE)
    def test_hostile_keys_take_at_most_ten_times_as_long(self, unit: str, length: int, benign_seconds: float) -> None:
        key = unit * ((length - 4) // len(unit)) + "!"
        hostile = {f"{key}|{number:02}": 2 for number in range(64)}
        assert cpu_seconds(hostile) < 10 * benign_seconds

    def test_the_work_of_all_keys_together_is_limited(self, reviewed: Reviewed) -> None:
        (problem,) = problems_of_many({"(.?.?.?){60}!" + str(number): 2 for number in range(64)})
        reviewed(problem)
