"""The body of a create call, which clones, plans and imports have as well: its shape, dotted names of its settings, and
the overrides of a clone.

The values of the training parameters are checked by app.domain.jobs.resolve.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, create_model
from pydantic.fields import FieldInfo

from app.domain.datasets.held_out import MAX_SEED
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.error_text.json_text import as_json
from app.domain.error_text.validation_text import bounds_of, check_shape
from app.domain.evaluations.graders import EvaluationRequest, Shape
from app.domain.jobs.definitions import Parameters
from app.domain.jobs.integrations import MAX_INTEGRATIONS, Integration
from app.domain.jobs.lora_parameters import LoraParameters
from app.domain.jobs.parameters import HYPERPARAMETERS, QuantizationParameters
from app.domain.jobs.request_parameters import DEFINITIONS, IN_HYPERPARAMETERS, collect, keys_of, method_of
from app.domain.jobs.spec import MAX_SAMPLE_PROMPTS, JobSpec, QuantizationSpec, SamplePrompt
from app.domain.methods import METHOD_PARAMETERS, METHODS, OWNERS
from app.domain.scheduling.fair_share import HIGHEST_PRIORITY, LOWEST_PRIORITY
from app.domain.scheduling.worker_capacity import LABEL, MAX_LABELS
from app.errors import BadRequest, UnknownParameter, combine_errors

Json: TypeAlias = dict[str, Any]

MAX_METADATA_PAIRS = 16
MAX_VARIANTS = 8  # of a group
OBJECTS = ("lora", "quantization")
SPEC_SETTINGS = ("method", "chat_template_kwargs", "sample_prompts", "evaluation", "seed")  # of the body and the spec
PLACES = {"method", "hyperparameters", *OBJECTS}  # of parameters
RATES = ("learning_rate", "learning_rate_multiplier")  # one replaces the other
REQUIRED = ("model", "training_file")
# Azure's scripts send them in any case; LiteLLM sends 1 to every Azure endpoint by default.
AZURE_TRAINING_TYPES = ("standard", "globalstandard", "developertier", "1")
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)]
Id = Annotated[str, Field(min_length=1, max_length=256)]
WorkerLabel = Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]
Priority = Annotated[int | None, Field(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY)]


def _check_training_type(value: Any) -> str | int:
    if isinstance(value, bool | float) or value == "1" or str(value).lower() not in AZURE_TRAINING_TYPES:
        raise ValueError("must be one of Azure's training types, Standard, GlobalStandard or DeveloperTier")
    training_type: str | int = value
    return training_type


TrainingType = Annotated[
    Any,
    AfterValidator(_check_training_type),
    WithJsonSchema({"enum": ["Standard", "GlobalStandard", "DeveloperTier", 1]}),
]


def _properties(model: type[Parameters], in_hyperparameters: bool = False) -> Json:
    """{name or alias: JSON schema}."""
    keys, schemas = keys_of(model, in_hyperparameters=in_hyperparameters), _schemas(model)
    return {alias: schemas[name.removeprefix(model.prefix)] for alias, name in keys.items()}


@cache
def _schemas(model: type[Parameters]) -> Any:
    return _without_titles(model.model_json_schema()["properties"])


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title"}


def _object_or_null(properties: Json, *others: Json) -> Json:
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {"anyOf": [schema, *others, {"type": "null"}]}


def _subject(model: type[Parameters], *others: Json) -> Json:
    description = " ".join(inspect.cleandoc(model.__doc__ or "").split())
    return _object_or_null(_properties(model), *others) | {"description": description}


LORA, QUANTIZATION = _subject(LoraParameters, {"const": True}), _subject(QuantizationParameters)


def _hyperparameters(*models: type[Parameters]) -> WithJsonSchema:
    own = {name: schema for model in (*HYPERPARAMETERS, *models) for name, schema in _properties(model).items()}
    load_in_4bit = {"type": "boolean", "description": "false means `quantization: null`."}
    objects = {"lora": LORA, "quantization": QUANTIZATION, "load_in_4bit": load_in_4bit}
    return WithJsonSchema(_object_or_null(own | _properties(LoraParameters, in_hyperparameters=True) | objects))


class _Described(Shape):
    """The text below a field is its description. The parameters, of which the domain has a list, may be any keys."""

    model_config = ConfigDict(
        use_attribute_docstrings=True, extra="allow", json_schema_extra={"additionalProperties": False}
    )


def _method_field(name: str) -> Any:
    schema = _hyperparameters(METHODS[name].parameters)
    about = 'Each may be absent, null or "auto".'
    annotation: Any = Annotated[Json | None, schema, Field(description=about)]
    model = create_model(name.capitalize(), __base__=_Described, hyperparameters=(annotation, None))
    return Annotated[model | None, Field(description=f"For `type` {name}.")], None


ROWS_OF_METHODS = f"Trains on {', '.join(f'{each.rows} ({each.name})' for each in METHODS.values())}."


class MethodType(_Described):
    type: Annotated[str, WithJsonSchema({"enum": list(METHODS)}), Field(description=ROWS_OF_METHODS)] = "supervised"


MethodBody = create_model("Method", __base__=MethodType, **{name: _method_field(name) for name in METHODS})


JobName = Annotated[str | None, Field(title="Name", min_length=1, max_length=64)]


class CreateJob(Shape):
    model_config = ConfigDict(use_attribute_docstrings=True)

    model: Annotated[Id, Field(title="Base model")]
    """A base model, or an `ft:` model to train further; GET /v1/models lists them."""
    training_file: Id
    """A file with purpose fine-tune."""
    validation_file: Id | None = None
    """The id of a file whose loss is measured and that is not used for training."""
    method: MethodBody | None = None
    """Default: `supervised`."""
    hyperparameters: Annotated[Json | None, _hyperparameters(*METHOD_PARAMETERS)] = None
    """OpenAI's older place for the same parameters."""
    suffix: JobName = None
    """The job's name in lists, and a part of its `ft:` model's name, with dashes for what a URL cannot hold."""
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    """Default: a random number, which the job shows."""
    chat_template_kwargs: ChatTemplateArguments | None = None
    """Arguments of the base model's chat template, for every prompt of the job and its adapter; a row of a file may
    have its own, which win key by key. Default: none; of an `ft:` model, those that it was trained with ({}: none).
    """
    sample_prompts: Annotated[list[SamplePrompt] | None, Field(max_length=MAX_SAMPLE_PROMPTS)] = None
    """Base model and adapter answer each with 64 tokens, at every validation or end of an epoch."""
    evaluation: EvaluationRequest | None = None
    """An evaluation of the result on held-out rows, as soon as the training has succeeded."""
    metadata: Metadata | None = None
    """Up to 16 pairs of your own; lists of jobs can be filtered by them."""
    integrations: Annotated[list[Integration] | None, Field(max_length=MAX_INTEGRATIONS)] = None
    """Experiment trackers that get the metrics of the job, from the worker. Keys are the operator's."""
    lora: Annotated[Any, WithJsonSchema(LORA)] = None
    quantization: Annotated[Any, WithJsonSchema(QUANTIZATION)] = None
    priority: Priority = None
    """Order among the queued jobs of your project: higher runs first. Default: 0."""
    urgent: bool | None = None
    """Run before the jobs of all projects that are not urgent. For admin keys and allowed projects."""
    worker_labels: Annotated[list[WorkerLabel] | None, Field(max_length=MAX_LABELS)] = None
    """Only a worker with all of these labels runs the job."""
    deliver_to: Annotated[list[Id] | None, Field(max_length=16)] = None
    """Names of delivery targets that get the adapter. Default: targets with `default`; []: none."""
    training_type: Annotated[TrainingType | None, Field(alias="trainingType")] = None
    """Azure's choice of place and price of training. It has no effect, and an event records that."""

    @property
    def without_effect(self) -> list[str]:
        """Notes on parameters that are accepted for compatibility with other services and have no effect."""
        if self.training_type is None:
            return []
        return [
            f"trainingType {as_json(self.training_type)} was ignored: it selects place and price at Azure; "
            "here every job trains on this server's own workers"
        ]


class Setting(NamedTuple):
    """What a form or a command says about a value of the body."""

    title: str
    description: str
    kind: type  # int, float, bool, str, list, or dict for an object
    minimum: float | None
    maximum: float | None

    @property
    def help(self) -> str:
        """The description and the bounds, as plain text."""
        text = self.description.replace("`", "")
        if self.minimum is None or self.maximum is None:
            return text
        low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.minimum, self.maximum))
        return f"{text} Allowed: {low} to {high}."

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Setting:
        bounds = bounds_of(field)
        title = field.title or name.rpartition(".")[2].replace("_", " ").capitalize()
        return cls(title, field.description or "", _kind(field.annotation), bounds.get("ge"), bounds.get("le"))


def _kind(annotation: Any) -> Any:
    origin = get_origin(annotation)
    options = [option for option in get_args(annotation) if option is not type(None)]
    if origin is Annotated or (origin in (Union, UnionType) and len(options) == 1):
        return _kind(options[0])
    if annotation in (int, float, bool, str):
        return annotation
    return {tuple: list, list: list, Literal: str}.get(origin, dict)


# By the dotted names of the settings: "model", "method", "n_epochs", "lora.r", "quantization.bits", ...
SETTINGS = {
    name: Setting.of(name, field)
    for name, field in (CreateJob.model_fields | {"method": MethodType.model_fields["type"]} | DEFINITIONS).items()
}


def create_body(settings: Mapping[str, Any], method: str | None = "supervised") -> Json:
    """The create body of {dotted name: value}; other names than those of SETTINGS are hyperparameters, as are whole
    objects, such as "lora".

    Hyperparameters stand under the method in `settings`, else under `method`; without both in OpenAI's older place, as
    a clone has the method of its original.
    """
    body: Json = {}
    hyperparameters: Json = {}
    for name, value in settings.items():
        head, _, key = name.partition(".")
        if name == "hyperparameters" and isinstance(value, Mapping):
            hyperparameters |= value
        elif key and head in OBJECTS:
            body[head] = (body.get(head) or {}) | {key: value}
        elif name in CreateJob.model_fields and (name not in OBJECTS or value is None):
            body[name] = value
        else:
            hyperparameters[name] = value
    method = body.pop("method", method)
    if method and (hyperparameters or method != "supervised"):
        body["method"] = {"type": method, method: {"hyperparameters": hyperparameters}}
    elif hyperparameters:
        body["hyperparameters"] = hyperparameters
    return body


def settings_of(body: Mapping[str, Any]) -> Json:
    """{dotted name: value} of a create body in the places of `create_body`, or of a job object, which has the same."""
    method = body.get("method") or {}
    kind = method.get("type") or "supervised"
    settings = {name: value for name, value in body.items() if name in CreateJob.model_fields.keys() - PLACES}
    settings |= {"method": kind} | (body.get("hyperparameters") or {})
    settings |= (method.get(kind) or {}).get("hyperparameters") or {}
    for head in OBJECTS:
        settings |= {f"{head}.{name}": value for name, value in (body.get(head) or {}).items()}
    if body.get("quantization", "") is None:
        settings["quantization"] = None
    return settings


def without(settings: Mapping[str, Any], subject: str) -> Json:
    """The settings without those of `lora` or `quantization`."""
    return {name: value for name, value in settings.items() if name.partition(".")[0] != subject}


def parse_create(body: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """The body without its invalid keys, and their problems. Raises BadRequest where nothing of it is usable."""
    parsed, problems = check_shape(CreateJob, body)
    problems = [_with_location_hint(problem) for problem in problems]
    if parsed is None:
        raise combine_errors(problems)
    return parsed, problems


def _with_location_hint(problem: BadRequest) -> BadRequest:
    """Add the location of a training parameter to its error: other services accept it at the top level."""
    if not isinstance(problem, UnknownParameter) or problem.param not in IN_HYPERPARAMETERS:
        return problem
    name = problem.param
    return UnknownParameter(
        f"unknown parameter {name}: move it into the hyperparameters, such as method.supervised.hyperparameters.{name}",
        name,
    )


def parse_clone(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[CreateJob, list[BadRequest]]:
    """The request of a clone: the settings of the original, with any keys of a create body. Returns as `parse_create`.

    Raises BadRequest where nothing is usable.
    """
    body, problems = _overridden(original, overrides)
    parsed, more = parse_create(body)
    return parsed, [*problems, *more]


def vary(job: Mapping[str, Any], variant: Mapping[str, Any]) -> tuple[Json, list[BadRequest]]:
    """The create body of a variant of `job`, and the problems of the variant's shape; the job's are left out.

    The variant overrides the job as the body of a clone its original, under any name of a parameter. Raises BadRequest
    where nothing is usable.
    """
    parsed, _ = parse_create(job)
    job = _usable(parsed, job)
    request = collect(job)
    settings = {name: value for name in request.given if (value := request.value(name)) is not None}
    if settings.pop("quantization", True) is False:
        settings["quantization"] = None  # a 16-bit base
    settings["method"] = request.method
    body, problems = _overridden(settings, variant)
    return merged({name: value for name, value in job.items() if name not in PLACES}, body), problems


def _overridden(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Json, list[BadRequest]]:
    """As `apply_overrides`, without those of an invalid shape, which are among the problems."""
    parsed, problems = parse_create(dict.fromkeys(REQUIRED, "-") | dict(overrides))
    return apply_overrides(original, _usable(parsed, overrides)), problems  # a null removes a value


def _usable(parsed: CreateJob, body: Mapping[str, Any]) -> Json:
    """The body without the keys that `parse_create` refuses."""
    names = {CreateJob.model_fields[name].alias or name for name in parsed.model_fields_set}
    return {name: value for name, value in body.items() if name in names}


def settings_of_spec(spec: JobSpec, **columns: Any) -> Json:
    """The settings of a spec and other values, with the absolute learning rate: the base model's rate may have changed
    since.
    """
    plain = spec.model_dump(mode="json")
    quantization, hyperparameters = plain["quantization"], plain["hyperparameters"]
    if hyperparameters["learning_rate"] is not None:
        hyperparameters.pop("learning_rate_multiplier")
    if spec.dtype_is_free:
        quantization.pop("compute_dtype")  # the original request did not set it
    settings = {name: plain.get(name) for name in SPEC_SETTINGS} | columns
    settings["model"] = spec.continued_from or spec.base_model  # not its alias, which may name another model today
    settings |= hyperparameters | {f"lora.{name}": value for name, value in plain["lora"].items()}
    settings |= {f"quantization.{name}": value for name, value in (quantization or {}).items()}
    if spec.continued_from and spec.chat_template_kwargs is None:
        settings["chat_template_kwargs"] = {}  # none, which absent would not say: those of the continued adapter
    settings = {name: value for name, value in settings.items() if value is not None}
    return settings if quantization else settings | {"quantization": None}  # null means a 16-bit base


def apply_overrides(original: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """The create body of settings with `overrides` of a valid shape: objects are merged key by key, other values are
    replaced.
    """
    settings, old = dict(original), original["method"]
    # Hyperparameters stand under the name of their method; an override need not repeat the method's type.
    overrides = {**overrides, "method": {"type": old, **(overrides.get("method") or {})}}
    new = method_of(overrides)
    dropped = []
    if new is not None and new != old:
        settings["method"] = new
        dropped = [*OWNERS, *RATES]  # the rate is resolved again
    request = collect(overrides)  # its problems are found again in the whole request
    for name, given in request.given.items():
        dropped.append(name)
        if name in RATES:
            dropped += RATES
        elif name == "quantization" and (not given.value or "quantization" in settings):
            settings = without(settings, name)
        elif name == "quantization.bits" and given.value != settings.get(name, QuantizationSpec().bits):
            dropped += ["quantization.type", "quantization.double_quant"]  # both belong to the previous bits
        elif name == "loss_type" and (request.value(name) or "sigmoid") != settings.get(name, "sigmoid"):
            dropped += ["beta", "simpo_gamma"]  # both belong to the previous loss
    return merged(create_body({name: value for name, value in settings.items() if name not in dropped}), overrides)


def merged(body: Mapping[str, Any], overrides: Mapping[str, Any]) -> Json:
    """The body with the values of `overrides`, object by object."""
    result = dict(body)
    for key, value in overrides.items():
        had = result.get(key)
        result[key] = merged(had, value) if isinstance(had, dict) and isinstance(value, Mapping) else value
    return result
