"""The `lora` knobs of a request -> a LoraSpec; on a model trained here they follow the adapter that is continued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from app.domain.base_models.catalog import MAX_RANK, CatalogEntry
from app.domain.error_text.json_text import as_json
from app.domain.jobs.bounds import ALPHA, DROPOUT
from app.domain.jobs.layer_patterns import MAX_KEYS, PatternError, key_problem, match_patterns
from app.domain.jobs.parameters import Knobs
from app.domain.jobs.request_aliases import ALL_LINEAR, NO_INITIALISATION
from app.domain.jobs.spec import LayerPatterns, LoraSpec

DEFAULT_RANK = 16
MAX_WHOLE_MODULES = 16
# An adapter's tensors have a shape and a meaning; only what acts while training may differ from its ancestor's.
FIXED = ("r", "alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")


class ResolvedLora(NamedTuple):
    """What was asked for, and its patterns by single layers: None where there are none, or the layers are not known."""

    lora: LoraSpec
    layer_patterns: LayerPatterns | None


class Ancestor(NamedTuple):
    """The adapter that training goes on from."""

    model: str  # "ft:..."
    lora: LoraSpec


def resolve_lora(knobs: Knobs, entry: CatalogEntry, ancestor: Ancestor | None = None) -> ResolvedLora | None:
    """None where something is wrong; `knobs.problems` then says what."""
    like = ancestor.lora if ancestor else None
    targets = _target_modules(knobs, entry, like)
    limit = min((min(entry.target_modules[name]) for name in targets if name in entry.target_modules), default=MAX_RANK)
    limit = min(limit, MAX_RANK)
    r = knobs.whole("lora.r", 1, MAX_RANK, lambda: like.r if like else DEFAULT_RANK)
    if r is not None and r > limit and targets:
        knobs.refuse("lora.r", f"{r} is above the smallest dimension of the target modules, which is {limit}")
    alpha = knobs.number("lora.alpha", ALPHA, lambda: like.alpha if like else 2.0 * (r or DEFAULT_RANK))
    dropout = knobs.number("lora.dropout", DROPOUT, lambda: like.dropout if like else 0.0)
    use_rslora = knobs.flag("lora.use_rslora", like.use_rslora if like else False)
    use_dora = knobs.flag("lora.use_dora", like.use_dora if like else False)
    rank_pattern = _pattern(knobs, "lora.rank_pattern", _is_rank, f"whole numbers from 1 to {MAX_RANK}")
    alpha_pattern = _pattern(knobs, "lora.alpha_pattern", _is_alpha, f"numbers {ALPHA}")
    modules_to_save = _modules_to_save(knobs, entry)
    _refuse_what_is_not_offered(knobs)
    if knobs.problems or r is None or alpha is None or dropout is None:
        return None
    lora = LoraSpec(
        r=r,
        alpha=alpha,
        dropout=dropout,
        target_modules=targets,
        use_rslora=use_rslora,
        use_dora=use_dora,
        rank_pattern=_or_like(rank_pattern, like.rank_pattern if like else {}),
        alpha_pattern=_or_like(alpha_pattern, like.alpha_pattern if like else {}),
        modules_to_save=_or_like(modules_to_save, like.modules_to_save if like else ()),
    )
    if ancestor:
        _check_ancestor(knobs, lora, ancestor)
    layer_patterns = None if knobs.problems else _match_patterns(knobs, lora, entry)
    return None if knobs.problems else ResolvedLora(lora, layer_patterns)


def _target_modules(knobs: Knobs, entry: CatalogEntry, like: LoraSpec | None) -> tuple[str, ...]:
    available = tuple(sorted(entry.target_modules))
    asked = knobs.value("lora.target_modules")
    if asked is None and like:
        return like.target_modules
    if asked in (None, ALL_LINEAR, [ALL_LINEAR]):
        return available
    if not isinstance(asked, list) or not asked or not all(isinstance(name, str) for name in asked):
        text = f'must be "all-linear" or a list of names out of {", ".join(available)}, not {as_json(asked)}'
        knobs.refuse("lora.target_modules", text)
        return ()
    unknown = [name for name in asked if name not in available]
    if unknown:
        seen = ", ".join(as_json(name) for name in unknown[:8])
        knobs.refuse("lora.target_modules", f"this model does not have {seen}; it has {', '.join(available)}")
        return ()
    return tuple(sorted(set(asked)))


def _pattern(knobs: Knobs, name: str, is_good: Callable[[Any], bool], what: str) -> dict[str, Any] | None:
    """None where it is absent, or not good."""
    asked = knobs.value(name)
    if asked is None:
        return None
    if not isinstance(asked, Mapping) or len(asked) > MAX_KEYS:
        text = f'must be an object of up to {MAX_KEYS} entries such as {{"q_proj": 8}}, not {as_json(asked)}'
        knobs.refuse(name, text, "invalid_type")
        return None
    for key, value in asked.items():
        if problem := key_problem(key):
            knobs.refuse(name, problem)
        elif not is_good(value):
            knobs.refuse(name, f"{as_json(key)} has {as_json(value)}; allowed are {what}")
    return dict(asked)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value in ALPHA


def _modules_to_save(knobs: Knobs, entry: CatalogEntry) -> tuple[str, ...] | None:
    """What a name fits is PEFT's rule and the trainer's to find out; here its last part must be a module's."""
    asked = knobs.value("lora.modules_to_save")
    if asked is None:
        return None
    is_list = isinstance(asked, list) and all(isinstance(name, str) and name for name in asked)
    if not is_list or len(asked) > MAX_WHOLE_MODULES:
        text = f'must be a list of up to {MAX_WHOLE_MODULES} names such as ["lm_head", "norm"], not {as_json(asked)}'
        knobs.refuse("lora.modules_to_save", text, "invalid_type")
        return None
    for name in asked:
        last = name.rpartition(".")[2]
        if last in entry.target_modules:
            text = f"{as_json(name)} is a linear layer of the frozen base; lora.target_modules adapts it"
            knobs.refuse("lora.modules_to_save", text)
        elif entry.whole_modules and not any(module.endswith(last) for module in entry.whole_modules):
            known = ", ".join(entry.whole_modules)
            knobs.refuse("lora.modules_to_save", f"this model does not have {as_json(name)}; it has {known}")
    return tuple(sorted(set(asked)))


def _refuse_what_is_not_offered(knobs: Knobs) -> None:
    knobs.only("lora.bias", "none", "trained biases do not load in most servers and are not offered")
    knobs.only("lora.init", "default", NO_INITIALISATION)


def _or_like(asked: Any, like: Any) -> Any:
    return like if asked is None else asked


def _match_patterns(knobs: Knobs, lora: LoraSpec, entry: CatalogEntry) -> LayerPatterns | None:
    """None also for an entry without layer names (of before they were kept, or too many): the worker matches then."""
    try:
        return match_patterns(lora, entry.layers) if entry.layers else None
    except PatternError as error:
        for problem in error.problems:
            knobs.refuse(problem.param, problem.text)
        return None


def _check_ancestor(knobs: Knobs, lora: LoraSpec, ancestor: Ancestor) -> None:
    for field in FIXED:
        asked, has = getattr(lora, field), getattr(ancestor.lora, field)
        if asked != has:
            text = f"{as_json(asked)} contradicts the {as_json(has)} of {ancestor.model}, which is continued"
            text += "; leave it out"
            knobs.refuse(f"lora.{field}", text, "conflicting_parameters")
