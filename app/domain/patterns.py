"""rank_pattern and alpha_pattern: a layer's own rank and scale, read exactly as PEFT reads them.

A key is a regular expression for the end of a layer's full name, from a dot on or from its beginning: "q_proj",
"mlp.down_proj", r"layers\\.[0-3]\\..*_proj". PEFT takes the first key that fits; JSON keeps no order, so two keys that
give one layer different numbers are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from app.domain.spec import LoraSpec

MAX_KEYS = 64
MAX_LENGTH = 256
# A key is matched in the API's own process. With at most three repetitions, none of a group, matching is cubic in a
# layer's name at worst; a nested repetition such as (a+)+ would be exponential.
MAX_REPETITIONS = 3
REPEATED_GROUP = re.compile(r"\)[*+?{]")
REPETITION = re.compile(r"(?<!\\)[*+?{]")
SPECIAL_GROUP = re.compile(r"\(\?|\\[1-9]")


class PatternProblem(NamedTuple):
    param: str  # "lora.rank_pattern"
    text: str


def rank_of(lora: LoraSpec, layer: str) -> int:
    key = pattern_of(lora.rank_pattern, layer)
    return lora.r if key is None else lora.rank_pattern[key]


def alpha_of(lora: LoraSpec, layer: str) -> float:
    key = pattern_of(lora.alpha_pattern, layer)
    return lora.alpha if key is None else lora.alpha_pattern[key]


def scale_of(lora: LoraSpec, layer: str) -> float:
    """alpha / r (arXiv 2106.09685), or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732), with the layer's own numbers."""
    r = rank_of(lora, layer)
    return alpha_of(lora, layer) / (math.sqrt(r) if lora.use_rslora else r)


def pattern_of(keys: Iterable[str], layer: str) -> str | None:
    """The first key that fits, as in peft.utils.other.get_pattern_key."""
    return next((key for key in keys if fits(key, layer)), None)


def fits(key: str, layer: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", layer) is not None


def key_problem(key: str) -> str | None:
    """What is wrong with a key by itself."""
    if not 0 < len(key) <= MAX_LENGTH:
        return f"a key has 1 to {MAX_LENGTH} letters"
    if REPEATED_GROUP.search(key) or SPECIAL_GROUP.search(key) or len(REPETITION.findall(key)) > MAX_REPETITIONS:
        return (
            f"{key!r} is too involved: at most {MAX_REPETITIONS} of * + ? {{, none of them after a group, no (?...), "
            "no back-reference"
        )
    try:
        re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        return f"{key!r} is no regular expression ({error})"
    return None


def pattern_problems(lora: LoraSpec, sizes: Mapping[str, tuple[int, int]]) -> Iterator[PatternProblem]:
    """What is wrong with the patterns of `lora` for target layers of these sizes, [out, in] by full name."""
    for param, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for text in _of_keys(patterns, sizes):
            yield PatternProblem(f"lora.{param}", text)
    for key, r in lora.rank_pattern.items():
        for layer in (layer for layer in sizes if pattern_of(lora.rank_pattern, layer) == key):
            if r > (limit := min(sizes[layer])):
                text = f"{key!r} gives the layer {layer} the rank {r}, but it is only {limit} wide"
                yield PatternProblem("lora.rank_pattern", text)
                break


def _of_keys(patterns: Mapping[str, float], layers: Iterable[str]) -> Iterator[str]:
    layers = list(layers)
    for key in patterns:
        if problem := key_problem(key):
            yield problem
            return
    for key in patterns:
        if not any(fits(key, layer) for layer in layers):
            known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
            yield f"{key!r} fits no target module; targets are {known}, with full names such as {layers[0]}"
    for layer in layers:
        fitting = [key for key in patterns if fits(key, layer)]
        if len({patterns[key] for key in fitting}) > 1:
            named = " and ".join(repr(key) for key in fitting)
            yield f"{named} fit the layer {layer} and differ; make one of them narrower"
            return
