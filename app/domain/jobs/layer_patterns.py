"""rank_pattern and alpha_pattern: rank and alpha by layer.

A key is a regular expression for the end of a layer's full name, from a dot or from its beginning: "q_proj",
"mlp.down_proj", r"layers\\.[0-3]\\..*_proj". Keys come from clients and Python's `re` can take exponential time, so
RE2, which takes linear time (https://swtch.com/~rsc/regexp/regexp3.html), matches them once, when the job is created.
From then on each key is one layer: its full name, escaped, because PEFT reads keys with `re`.

PEFT takes the first key that matches; JSON keeps no order, so keys that give one layer different numbers are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import re2

from app.domain.error_text.json_text import as_json
from app.domain.jobs.spec import JobSpec, LayerPatterns, LoraSpec

MAX_KEYS = 64
MAX_KEY_CHARACTERS = 256
MAX_PROGRAM_BYTES = 1 << 16  # RE2's max_mem: some 2,000 instructions, at most 0.1 ms for one name
# Instructions of all keys times layers: enough for 64 ordinary keys of 100 letters and 4,096 layers. Above it, matching
# takes seconds.
MAX_WORK = 40_000_000
SYNTAX = "https://github.com/google/re2/wiki/Syntax"
Number = TypeVar("Number", int, float)
Sizes = Mapping[str, tuple[int, int]]  # [out, in] of layers, by full name


class PatternProblem(NamedTuple):
    param: str  # "lora.rank_pattern"
    text: str


class PatternError(ValueError):
    """Patterns that can't be matched with the layers of a base model; `problems` lists every reason."""

    def __init__(self, problems: Iterable[PatternProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{problem.param}: {problem.text}" for problem in self.problems))


def rank_of(lora: LoraSpec, layer: str) -> int:
    """The rank of a layer. The keys of `lora` must be single layers."""
    return _value_of_layer(lora.rank_pattern, layer, lora.r)


def alpha_of(lora: LoraSpec, layer: str) -> float:
    """The alpha of a layer. The keys of `lora` must be single layers."""
    return _value_of_layer(lora.alpha_pattern, layer, lora.alpha)


def scale_of(lora: LoraSpec, layer: str) -> float:
    """alpha / r (arXiv 2106.09685), or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732), with the layer's own numbers."""
    r = rank_of(lora, layer)
    return alpha_of(lora, layer) / (math.sqrt(r) if lora.use_rslora else r)


def layer_keys(layers: Iterable[str]) -> dict[str, str]:
    r"""For each layer the key that PEFT matches with it and with no other of `layers`.

    PEFT matches rf"(.*\.)?({key})$": a name that also ends the name of another layer needs an anchor.
    """
    layers = list(layers)
    endings = {name[at + 1 :] for name in layers for at, letter in enumerate(name) if letter == "."}
    return {name: f"^{re.escape(name)}" if name in endings else re.escape(name) for name in layers}


def key_problem(key: str) -> str | None:
    """The problem of a key by itself, or None."""
    if not 0 < len(key) <= MAX_KEY_CHARACTERS:
        return f"a key has 1 to {MAX_KEY_CHARACTERS} letters"
    if "{," in key:  # literal in RE2, but {0, in Python and PEFT
        return f"{as_json(key)}: write {{0,n}} instead of {{,n}}"
    try:
        _compile(key)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        return f"{as_json(key)} is no regular expression that RE2 accepts: {reason} ({SYNTAX})"
    return None


def match_spec(spec: JobSpec, layers: Sizes) -> JobSpec:
    """The spec with its patterns matched with the base model's layers, unless they are matched already.

    Raises PatternError.
    """
    if spec.layer_patterns is not None or not layers:
        return spec
    return spec.model_copy(update={"layer_patterns": match_patterns(spec.lora, layers)})


def expand_patterns(lora: LoraSpec, layers: Sizes) -> LoraSpec:
    """`lora` with one key per layer; the keys of older adapters and snapshots are patterns.

    Raises PatternError.
    """
    if set(layer_keys(layers).values()).issuperset((*lora.rank_pattern, *lora.alpha_pattern)):
        return lora
    return lora.model_copy(update=dict(match_patterns(lora, layers) or ()))


def match_patterns(lora: LoraSpec, layers: Sizes) -> LayerPatterns | None:
    """Match the patterns of `lora` with the layers of a base model; None if there are no patterns.

    Raises PatternError for a key that RE2 refuses or that matches no target, for keys that differ on one layer, for a
    rank above a layer's smaller side, and for more work than MAX_WORK.
    """
    if not lora.rank_pattern and not lora.alpha_pattern:
        return None
    targets = {name: size for name, size in layers.items() if name.rpartition(".")[2] in lora.target_modules}
    ranks, problems_of_ranks = _match(lora.rank_pattern, targets)
    alphas, problems_of_alphas = _match(lora.alpha_pattern, targets)
    problems_of_ranks += _rank_problems(lora.rank_pattern, ranks, targets)
    problems = [PatternProblem("lora.rank_pattern", text) for text in problems_of_ranks]
    problems += [PatternProblem("lora.alpha_pattern", text) for text in problems_of_alphas]
    if problems:
        raise PatternError(problems)
    keys = layer_keys(layers)
    return LayerPatterns(
        rank_pattern=_layer_values(lora.rank_pattern, ranks, keys),
        alpha_pattern=_layer_values(lora.alpha_pattern, alphas, keys),
    )


def _match(patterns: Mapping[str, float], targets: Sizes) -> tuple[dict[str, list[str]], list[str]]:
    """The layers that each key matches, and the problems."""
    if problems := [problem for key in patterns if (problem := key_problem(key))]:
        return {}, problems
    compiled = {key: _compile(key) for key in patterns}
    if sum(pattern.programsize for pattern in compiled.values()) * len(targets) > MAX_WORK:
        text = (
            f"{len(patterns)} keys of this size are too many to match with the {len(targets):,} target layers of this "
            "model; give fewer or shorter ones"
        )
        return {}, [text]
    matched = {key: [layer for layer in targets if pattern.fullmatch(layer)] for key, pattern in compiled.items()}
    return matched, list(_mismatches(patterns, matched, list(targets)))


def _mismatches(patterns: Mapping[str, float], matched: Mapping[str, list[str]], layers: list[str]) -> Iterator[str]:
    for key in patterns:
        if not matched[key]:
            known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
            such = layers[0] if layers else "none"
            yield f"{as_json(key)} fits no target module; targets are {known}, with full names such as {such}"
    keys_of: dict[str, list[str]] = {}
    for key, names in matched.items():
        for layer in names:
            keys_of.setdefault(layer, []).append(key)
    for layer, keys in keys_of.items():
        if len({patterns[key] for key in keys}) > 1:
            named = " and ".join(as_json(key) for key in keys)
            yield f"{named} fit the layer {layer} and differ; make one of them narrower"
            return


def _rank_problems(ranks: Mapping[str, int], matched: Mapping[str, list[str]], sizes: Sizes) -> Iterator[str]:
    for key, names in matched.items():
        for layer in names:
            if ranks[key] > (limit := min(sizes[layer])):
                yield f"{as_json(key)} gives the layer {layer} the rank {ranks[key]}, but it is only {limit} wide"
                break


def _layer_values(
    patterns: Mapping[str, Number], matched: Mapping[str, list[str]], keys: Mapping[str, str]
) -> dict[str, Number]:
    return {keys[layer]: patterns[pattern] for pattern, names in matched.items() for layer in names}


def _value_of_layer(numbers: Mapping[str, Number], layer: str, default: Number) -> Number:
    key = re.escape(layer)
    return numbers.get(f"^{key}", numbers.get(key, default))


def _compile(key: str) -> Any:
    """Compile a key; cached by re2. Raises re2.error."""
    options = re2.Options()
    options.max_mem = MAX_PROGRAM_BYTES
    options.never_capture = True
    options.log_errors = False
    re2.compile(key, options)  # by itself first: an error is about the key alone, and a key cannot close the group
    return re2.compile(rf"(?:.*\.)?(?:{key})", options)
