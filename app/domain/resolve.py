"""A create request -> what will be trained: aliases become one name, "auto" becomes a number, once.

Gather every knob under its canonical name (an unknown key, or one knob given twice with different values, is an
error), check the values, fill in what is absent. All problems of a request are reported at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.domain.catalog import MAX_RANK, CatalogEntry
from app.domain.spec import Hyperparameters, JobSpec, LoraSpec, QuantizationSpec
from app.errors import BadRequest, UnknownParameter

AUTO = "auto"
ALL_LINEAR = "all-linear"
DEFAULT_RANK = 16
MAX_SEED = 2_147_483_647


@dataclass(frozen=True)
class Knob:
    """One value as the client gave it, and the dotted path under which it did."""

    value: Any
    path: str


@dataclass
class Knobs:
    """Every knob of a request under its canonical name: "lora.r", "n_epochs", "quantization.type", ..."""

    values: dict[str, Knob] = field(default_factory=dict)
    problems: list[BadRequest] = field(default_factory=list)

    def give(self, name: str, value: Any, path: str) -> None:
        known = self.values.get(name)
        if known is not None and known.value != value:
            text = (
                f"{path} = {value!r} contradicts {known.path} = {known.value!r}; give it once, or twice with one value"
            )
            self.problems.append(BadRequest(text, path, "conflicting_parameters"))
            return
        self.values[name] = Knob(value, path)

    def path(self, name: str) -> str:
        return self.values[name].path

    def refuse(self, name: str, text: str, code: str = "invalid_value") -> None:
        path = self.path(name) if name in self.values else name
        self.problems.append(BadRequest(f"{path}: {text}", path, code))


# What a key of `hyperparameters` means: OpenAI's, ours, and the aliases other services taught people.
HYPERPARAMETERS = {
    name: name
    for name in (
        "n_epochs", "batch_size", "learning_rate_multiplier", "learning_rate", "warmup_ratio", "weight_decay",
        "max_grad_norm", "lr_scheduler_type", "context_length", "packing", "max_steps",
    )
}  # fmt: skip
LORA_ALIASES = {
    "lora_r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_trainable_modules": "target_modules",
}
LORA_KEYS = {
    "r": "r", "rank": "r", "alpha": "alpha", "lora_alpha": "alpha", "dropout": "dropout", "lora_dropout": "dropout",
    "target_modules": "target_modules", "use_rslora": "use_rslora", "use_dora": "use_dora", "bias": "bias", "init": "init",
}  # fmt: skip
QUANTIZATION_KEYS = ("bits", "type", "double_quant", "compute_dtype")


def resolve(body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int) -> JobSpec:
    """Turn a create body into a JobSpec for a training file of `n_examples` lines.

    Raises BadRequest: the first problem's `param` and code, a message that lists them all.
    """
    knobs = gather(body)
    spec = None
    if not knobs.problems:
        spec = _fill_in(knobs, body, base_model, entry, max(1, n_examples))
    if spec is None or knobs.problems:
        raise _all_at_once(knobs.problems)
    return spec


def gather(body: Mapping[str, Any]) -> Knobs:
    knobs = Knobs()
    for path, hyperparameters in _hyperparameter_objects(body, knobs):
        for key, value in hyperparameters.items():
            _gather_one(knobs, f"{path}.{key}", key, value)
    if "lora" in body:
        _gather_lora(knobs, body["lora"], "lora")
    if "quantization" in body:
        _gather_quantization(knobs, body["quantization"], "quantization")
    return knobs


def auto_epochs(n_examples: int) -> int:
    """OpenAI's rule (its cookbook): start at 3 and keep examples x epochs within 100 to 25,000."""
    if 3 * n_examples < 100:
        return min(25, 100 // n_examples)
    if 3 * n_examples > 25_000:
        return max(1, 25_000 // n_examples)
    return 3


def auto_batch_size(n_examples: int, entry: CatalogEntry) -> int:
    """Small batches suit LoRA ("LoRA Without Regret"): at least 32 steps an epoch, up to the catalogue's bound."""
    return max(1, min(entry.max_auto_batch_size, n_examples // 32))


# --- gather -----------------------------------------------------------------------------------------------------------


def _hyperparameter_objects(body: Mapping[str, Any], knobs: Knobs) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method = body.get("method") or {}
    kind = method.get("type", "supervised")
    if kind != "supervised":
        text = f"method.type {kind!r} is not offered here; allowed is 'supervised'"
        knobs.problems.append(BadRequest(text, "method.type", "unsupported_value"))
        return
    for key in method.keys() - {"type", "supervised"}:
        knobs.problems.append(_unknown(f"method.{key}", ("type", "supervised")))
    supervised = method.get("supervised") or {}
    for key in supervised.keys() - {"hyperparameters"}:
        knobs.problems.append(_unknown(f"method.supervised.{key}", ("hyperparameters",)))
    yield "method.supervised.hyperparameters", supervised.get("hyperparameters") or {}
    yield "hyperparameters", body.get("hyperparameters") or {}


def _gather_one(knobs: Knobs, path: str, key: str, value: Any) -> None:
    if key in HYPERPARAMETERS:
        knobs.give(HYPERPARAMETERS[key], value, path)
    elif key in LORA_ALIASES:
        knobs.give(f"lora.{LORA_ALIASES[key]}", _split_names(value), path)
    elif key == "lora":
        _gather_lora(knobs, value, path)
    elif key == "quantization":
        _gather_quantization(knobs, value, path)
    elif key == "load_in_4bit":
        _gather_load_in_4bit(knobs, value, path)
    else:
        knobs.problems.append(_unknown(path, (*HYPERPARAMETERS, *LORA_ALIASES, "lora", "quantization", "load_in_4bit")))


def _gather_lora(knobs: Knobs, value: Any, path: str) -> None:
    if value is None or value is True:
        return
    if value is False:
        text = f"{path} = false asks for full fine-tuning; Tunery trains adapters only"
        knobs.problems.append(BadRequest(text, path, "unsupported_value"))
        return
    if not isinstance(value, Mapping):
        knobs.problems.append(BadRequest(f'{path} must be an object such as {{"r": 16}}', path, "invalid_type"))
        return
    for key, item in value.items():
        if key in LORA_KEYS:
            knobs.give(
                f"lora.{LORA_KEYS[key]}",
                _split_names(item) if LORA_KEYS[key] == "target_modules" else item,
                f"{path}.{key}",
            )
        else:
            knobs.problems.append(_unknown(f"{path}.{key}", tuple(LORA_KEYS)))


def _gather_quantization(knobs: Knobs, value: Any, path: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        text = f'{path} must be null (16-bit LoRA) or an object such as {{"bits": 4, "type": "nf4"}}'
        knobs.problems.append(BadRequest(text, path, "invalid_type"))
        return
    knobs.give("quantization", value is not None, path)
    for key, item in (value or {}).items():
        if key in QUANTIZATION_KEYS:
            knobs.give(f"quantization.{key}", item, f"{path}.{key}")
        else:
            knobs.problems.append(_unknown(f"{path}.{key}", QUANTIZATION_KEYS))


def _gather_load_in_4bit(knobs: Knobs, value: Any, path: str) -> None:
    if isinstance(value, bool):
        knobs.give("quantization", value, path)
    else:
        knobs.problems.append(BadRequest(f"{path} must be true or false, not {value!r}", path, "invalid_type"))


# --- fill in ----------------------------------------------------------------------------------------------------------


def _fill_in(
    knobs: Knobs, body: Mapping[str, Any], base_model: str, entry: CatalogEntry, n_examples: int
) -> JobSpec | None:
    lora = _lora(knobs, entry)
    quantization = _quantization(knobs)
    hyperparameters = _hyperparameters(knobs, entry, n_examples)
    seed = body.get("seed")
    if knobs.problems or lora is None or hyperparameters is None:
        return None
    return JobSpec(
        base_model=base_model,
        lora=lora,
        quantization=quantization,
        hyperparameters=hyperparameters,
        seed=random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed,
    )


def _lora(knobs: Knobs, entry: CatalogEntry) -> LoraSpec | None:
    targets = _target_modules(knobs, entry)
    limit = min((min(entry.target_modules[name]) for name in targets), default=MAX_RANK)
    limit = min(limit, MAX_RANK)
    r = _whole(knobs, "lora.r", 1, MAX_RANK, lambda: DEFAULT_RANK)
    if r is not None and r > limit and targets:
        knobs.refuse("lora.r", f"{r} is above the smallest dimension of the target modules, which is {limit}")
    alpha = _number(knobs, "lora.alpha", lambda: 2.0 * (r or DEFAULT_RANK), above=0)
    dropout = _number(knobs, "lora.dropout", lambda: 0.0, least=0, below=1)
    use_rslora = _flag(knobs, "lora.use_rslora", False)
    _only(knobs, "lora.use_dora", False, "DoRA is not offered yet")
    _only(knobs, "lora.bias", "none", "trained biases do not load in most servers and are not offered")
    _only(
        knobs,
        "lora.init",
        "default",
        "other initialisations (PiSSA, LoftQ, ...) change the base and are not offered",
    )
    if knobs.problems or r is None or alpha is None or dropout is None:
        return None
    return LoraSpec(r=r, alpha=alpha, dropout=dropout, target_modules=targets, use_rslora=use_rslora)


def _target_modules(knobs: Knobs, entry: CatalogEntry) -> tuple[str, ...]:
    available = tuple(sorted(entry.target_modules))
    asked = _value(knobs, "lora.target_modules")
    if asked in (None, ALL_LINEAR, [ALL_LINEAR]):
        return available
    if not isinstance(asked, list) or not asked or not all(isinstance(name, str) for name in asked):
        knobs.refuse("lora.target_modules", f'must be "all-linear" or a list of names out of {", ".join(available)}')
        return ()
    unknown = [name for name in asked if name not in available]
    if unknown:
        text = f"{base_names(unknown)} {'is' if len(unknown) == 1 else 'are'} not in this model; it has {', '.join(available)}"
        knobs.refuse("lora.target_modules", text)
        return ()
    return tuple(sorted(set(asked)))


def base_names(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:8])


def _quantization(knobs: Knobs) -> QuantizationSpec | None:
    wanted = knobs.values.get("quantization")
    if wanted is not None and not wanted.value:
        return None
    values: dict[str, Any] = {}
    for key, allowed in (
        ("bits", (4,)),
        ("type", ("nf4", "fp4")),
        ("compute_dtype", ("bfloat16", "float16", "float32")),
    ):
        value = _value(knobs, f"quantization.{key}")
        if value is not None and (value not in allowed or isinstance(value, bool)):
            knobs.refuse(
                f"quantization.{key}",
                f"{value!r} is not offered; allowed: {', '.join(map(str, allowed))}",
                "unsupported_value",
            )
        elif value is not None:
            values[key] = value
    values["double_quant"] = _flag(knobs, "quantization.double_quant", True)
    return None if knobs.problems else QuantizationSpec(**values)


def _hyperparameters(knobs: Knobs, entry: CatalogEntry, n_examples: int) -> Hyperparameters | None:
    multiplier = _number(knobs, "learning_rate_multiplier", lambda: 1.0, above=0)
    rate = _number(knobs, "learning_rate", lambda: None, above=0)
    if rate is not None and _value(knobs, "learning_rate_multiplier") is not None:
        knobs.refuse(
            "learning_rate",
            "is absolute, so it excludes a learning_rate_multiplier",
            "conflicting_parameters",
        )
    values = {
        "n_epochs": _whole(knobs, "n_epochs", 1, 50, lambda: auto_epochs(n_examples)),
        "batch_size": _whole(knobs, "batch_size", 1, 256, lambda: auto_batch_size(n_examples, entry)),
        "warmup_ratio": _number(knobs, "warmup_ratio", lambda: 0.03, least=0, most=1),
        "weight_decay": _number(knobs, "weight_decay", lambda: 0.0, least=0),
        "max_grad_norm": _number(knobs, "max_grad_norm", lambda: 1.0, above=0),
        "lr_scheduler_type": _choice(knobs, "lr_scheduler_type", ("linear", "cosine", "constant"), "linear"),
        "context_length": _whole(knobs, "context_length", 1, entry.context_length, lambda: entry.context_length),
        "packing": _flag(knobs, "packing", True),
        "max_steps": _whole(knobs, "max_steps", 1, 10_000_000, lambda: None),
    }
    if knobs.problems or multiplier is None:
        return None
    return Hyperparameters(
        **values,
        learning_rate=rate or entry.learning_rate * multiplier,
        learning_rate_multiplier=None if rate else multiplier,
    )


# --- one value --------------------------------------------------------------------------------------------------------


def _value(knobs: Knobs, name: str) -> Any:
    """The client's value; None where it is absent, null or "auto"."""
    knob = knobs.values.get(name)
    return None if knob is None or knob.value == AUTO else knob.value


def _whole(knobs: Knobs, name: str, least: int, most: int, auto: Callable[[], int | None]) -> int | None:
    value = _value(knobs, name)
    if value is None:
        return auto()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        knobs.refuse(name, f"{value!r} is not a whole number from {least} to {most}")
        return None
    return value


def _number(
    knobs: Knobs,
    name: str,
    auto: Callable[[], float | None],
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float | None:
    value = _value(knobs, name)
    if value is None:
        return auto()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not (least <= value <= most and above < value < below):
        knobs.refuse(name, f"{value!r} is not {_interval(least, most, above, below)}")
        return None
    return float(value)


def _interval(least: float, most: float, above: float, below: float) -> str:
    bounds = []
    if least > -math.inf:
        bounds.append(f"at least {least:g}")
    if above > -math.inf:
        bounds.append(f"above {above:g}")
    if most < math.inf:
        bounds.append(f"at most {most:g}")
    if below < math.inf:
        bounds.append(f"below {below:g}")
    return "a number " + " and ".join(bounds)


def _flag(knobs: Knobs, name: str, default: bool) -> bool:
    value = _value(knobs, name)
    if value is None:
        return default
    if not isinstance(value, bool):
        knobs.refuse(name, f"{value!r} is not true or false", "invalid_type")
    return bool(value)


def _choice(knobs: Knobs, name: str, allowed: tuple[str, ...], default: str) -> str:
    value = _value(knobs, name)
    if value is not None and value not in allowed:
        knobs.refuse(name, f"{value!r} is not offered; allowed: {', '.join(allowed)}", "unsupported_value")
    return default if value is None else str(value)


def _only(knobs: Knobs, name: str, allowed: Any, why: str) -> None:
    value = _value(knobs, name)
    if value is not None and value != allowed:
        knobs.refuse(name, f"{value!r}: {why}; allowed is {allowed!r}", "unsupported_value")


def _split_names(value: Any) -> Any:
    if isinstance(value, str) and value not in (ALL_LINEAR, AUTO):
        return [name.strip() for name in value.split(",")]
    return value


def _unknown(path: str, known: tuple[str, ...]) -> UnknownParameter:
    return UnknownParameter(f"unknown parameter {path}; known here: {', '.join(sorted(set(known)))}", path)


def _all_at_once(problems: list[BadRequest]) -> BadRequest:
    first = problems[0]
    return type(first)("; ".join(problem.message for problem in problems), first.param, first.code)
