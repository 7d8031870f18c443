"""The `lora` parameters of a request. With a parent adapter they are its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, AliasPath, Field, PlainValidator, WithJsonSchema

from app.domain.base_models.catalog import MAX_RANK, CatalogEntry
from app.domain.error_text.json_text import as_json
from app.domain.jobs.definitions import Auto, CommaSeparated, Info, ParameterError, Parameters
from app.domain.jobs.hyperparameters import ALPHA, Bounds
from app.domain.jobs.layer_patterns import MAX_KEYS, key_problem

ALL_LINEAR = "all-linear"
DEFAULT_RANK = 16
MAX_SAVED_MODULES = 16
MAX_EXPERT_NAMES = 1024
NAMES_SCHEMA = WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]})
# The shape and the meaning of the parent adapter's tensors depend on these; dropout acts in training alone.
FIXED_BY_PARENT = (
    "r",
    "alpha",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
    "experts",
)


def _target_modules(value: Any, info: Info) -> tuple[str, ...]:
    available = tuple(sorted(info.context.entry.target_modules))
    if value in (ALL_LINEAR, [ALL_LINEAR]):
        return available
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ParameterError(
            f'must be "all-linear" or a list of names out of {", ".join(available)}, not {as_json(value)}'
        )
    unknown = [name for name in value if name not in available]
    if unknown:
        seen = ", ".join(as_json(name) for name in unknown[:8])
        raise ParameterError(f"this model does not have {seen}; it has {', '.join(available)}")
    return tuple(sorted(set(value)))


def _within_targets(given: int | None, info: Info) -> int:
    """Resolves "auto", too: a default rank may also be too large."""
    entry, parent = info.context.entry, info.context.parent
    targets = info.data.get("target_modules", ())  # absent where they are wrong, None for "auto"
    if targets is None:
        targets = parent.lora.target_modules if parent else entry.target_modules
    sizes = [min(entry.target_modules[name]) for name in targets if name in entry.target_modules]
    limit = min([*sizes, MAX_RANK])
    r = given or (parent.lora.r if parent else DEFAULT_RANK)
    if r > limit:
        raise ParameterError(f"{r} is above the smallest dimension of the target modules, which is {limit}")
    return r


def _pattern(kind: Any, bounds: Bounds) -> PlainValidator:
    allowed = f"{'whole ' if kind is int else ''}numbers {bounds}"

    def is_valid(number: Any) -> bool:
        return isinstance(number, kind) and not isinstance(number, bool) and number in bounds

    def validate(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > MAX_KEYS:
            text = f'must be an object of up to {MAX_KEYS} entries such as {{"q_proj": 8}}, not {as_json(value)}'
            raise ParameterError(text, code="invalid_type")
        problems = [
            key_problem(key) or f"{as_json(key)} has {as_json(number)}; allowed are {allowed}"
            for key, number in value.items()
            if key_problem(key) or not is_valid(number)
        ]
        if problems:
            raise ParameterError(*problems)
        return dict(value)

    return PlainValidator(validate)


def _names(problems: Callable[[list[str], Info], list[str]], example: str, limit: int) -> PlainValidator:
    """A list of names; `problems` are those of a list of strings."""

    def validate(value: Any, info: Info) -> tuple[str, ...]:
        is_list = isinstance(value, list) and all(isinstance(name, str) and name for name in value)
        if not is_list or len(value) > limit:
            text = f"must be a list of up to {limit} names such as {example}, not {as_json(value)}"
            raise ParameterError(text, code="invalid_type")
        if found := problems(value, info):
            raise ParameterError(*found)
        return tuple(sorted(set(value)))

    return PlainValidator(validate)


def _saved_problems(names: list[str], info: Info) -> list[str]:
    """The trainer matches names as PEFT does; here the last part of each must be that of a module."""
    return [problem for name in names if (problem := _module_problem(name, info.context.entry))]


def _expert_problems(names: list[str], info: Info) -> list[str]:
    """Names of stacked expert weights: like PEFT, the end of a full name from a dot on matches."""
    entry = info.context.entry
    unknown = [as_json(name) for name in names if not any(f".{full}".endswith(f".{name}") for full in entry.experts)]
    if not entry.experts and entry.expert_parameters:
        unknown = []  # registered on a host without torch, which does not know them: the trainer checks the names
    if unknown and not entry.experts:
        return ["this model has no experts; leave it out"]
    if unknown:
        return [f"this model does not have {', '.join(unknown)}; it has {', '.join(entry.expert_names)}"]
    if names and info.data.get("experts"):
        return ["lora.experts adapts all of them; leave one of the two out"]
    return _excluded(info) if names else []


def _excluded(info: Info) -> list[str]:
    excluded = [name for name in ("dropout", "use_dora") if info.data.get(name)]
    return [f"excludes {' and '.join(excluded)}: PEFT adapts experts without them"] if excluded else []


def _has_experts(adapted: bool, info: Info) -> bool:
    has_experts = info.context.entry.experts or info.context.entry.expert_parameters
    problems = _excluded(info) if has_experts else ["this model has no experts; leave it out"]
    if adapted and problems:
        raise ParameterError(*problems)
    return adapted


def _module_problem(name: str, entry: CatalogEntry) -> str | None:
    last = name.rpartition(".")[2]
    if last in entry.target_modules:
        return f"{as_json(name)} is a linear layer of the frozen base; lora.target_modules adapts it"
    if entry.whole_modules and not any(module.endswith(last) for module in entry.whole_modules):
        return f"this model does not have {as_json(name)}; it has {', '.join(entry.whole_modules)}"
    return None


class LoraParameters(Parameters):
    """The adapter. Absent, null and true mean the defaults."""

    prefix: ClassVar[str] = "lora."

    target_modules: Annotated[
        tuple[str, ...],
        Field(
            validation_alias=AliasChoices(
                "target_modules",
                AliasPath("hyperparameters", "lora_target_modules"),
                AliasPath("hyperparameters", "lora_trainable_modules"),
            ),
            examples=[["q_proj", "v_proj"]],
        ),
        CommaSeparated(),
        PlainValidator(_target_modules),
        WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}]}),
        Auto(rule=lambda context, _: tuple(sorted(context.entry.target_modules))),
    ]
    """"all-linear" (every linear layer but lm_head; the default) or names of the base model's layers."""
    r: Annotated[
        int,
        Field(
            title="LoRA rank",
            ge=1,
            le=MAX_RANK,
            validation_alias=AliasChoices("r", "rank", AliasPath("hyperparameters", "lora_r")),
            examples=[16],
        ),
        Auto(),
        AfterValidator(_within_targets),
    ]
    """Rank of the adapter; 16 by default."""
    alpha: Annotated[
        float,
        Field(
            title="LoRA alpha",
            ge=ALPHA.minimum,
            le=ALPHA.maximum,
            validation_alias=AliasChoices("alpha", "lora_alpha", AliasPath("hyperparameters", "lora_alpha")),
            examples=[32],
        ),
        Auto(rule=lambda _, values: 2.0 * values["r"]),
    ]
    """Scale: the update is alpha / r times BA; 2r by default."""
    dropout: Annotated[
        float,
        Field(
            title="LoRA dropout",
            ge=0,
            le=0.99,
            validation_alias=AliasChoices("dropout", "lora_dropout", AliasPath("hyperparameters", "lora_dropout")),
            examples=[0.05],
        ),
        Auto(0.0),
    ]
    """Dropout before the adapter while training; 0 by default."""
    use_rslora: Annotated[bool, Field(examples=[True]), Auto(False)]
    """Scale by alpha / sqrt(r) instead (rsLoRA); false by default."""
    use_dora: Annotated[bool, Field(examples=[True]), Auto(False)]
    """Train the length of each row of a weight, too (DoRA); slower."""
    rank_pattern: Annotated[
        dict[str, int],
        Field(examples=[{"q_proj": 8}]),
        _pattern(int, Bounds(1, MAX_RANK)),
        WithJsonSchema(
            {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MAX_RANK}}
        ),
        Auto({}),
    ]
    """Ranks of single layers: the end of a layer's name, or a regular expression (RE2) for it -> rank."""
    alpha_pattern: Annotated[
        dict[str, float],
        Field(examples=[{"q_proj": 16}]),
        _pattern(int | float, ALPHA),
        WithJsonSchema(
            {
                "type": "object",
                "additionalProperties": {"type": "number", "minimum": ALPHA.minimum, "maximum": ALPHA.maximum},
            }
        ),
        Auto({}),
    ]
    """The same for alpha."""
    modules_to_save: Annotated[
        tuple[str, ...],
        Field(examples=[["norm"]]),
        CommaSeparated(),
        _names(_saved_problems, '["lm_head", "norm"]', MAX_SAVED_MODULES),
        NAMES_SCHEMA,
        Auto(()),
    ]
    """Modules to train whole and save beside the adapter: norms, embed_tokens, lm_head."""
    experts: Annotated[
        bool,
        Field(title="Adapt the experts", examples=[True]),
        Auto(False),
        AfterValidator(_has_experts),
    ]
    """Adapt all experts of a mixture of experts, too; false by default: they stay frozen. Without dropout and DoRA."""
    target_parameters: Annotated[
        tuple[str, ...],
        Field(examples=[["mlp.experts.down_proj"]]),
        CommaSeparated(),
        _names(_expert_problems, '["mlp.experts.down_proj"]', MAX_EXPERT_NAMES),
        NAMES_SCHEMA,
        Auto(()),
    ]
    """Stacked weights of experts to adapt, one by one, as in PEFT; none by default."""
    bias: Annotated[
        Literal["none"],
        Field(examples=["none"]),
        Auto("none"),
    ]
    """Trained biases are not offered."""
    init: Annotated[Literal["default"], Field(examples=["default"]), Auto("default")]
    """Other initializations are not offered."""
