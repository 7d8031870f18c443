"""Request bodies of jobs: their shape. The domain checks the values of the training parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from app.api.error_handlers import MAX_PROBLEMS, as_problems
from app.api.schemas.common import Body
from app.api.schemas.jobs import parameters
from app.domain.error_text.json_text import as_json
from app.domain.evaluations.graders import EvaluationRequest
from app.domain.jobs.request_parameters import IN_HYPERPARAMETERS
from app.domain.jobs.resolve import MAX_SEED
from app.domain.jobs.spec import MAX_SAMPLE_PROMPTS, SamplePrompt
from app.domain.scheduling.fair_share import HIGHEST_PRIORITY, LOWEST_PRIORITY
from app.domain.scheduling.worker_capacity import LABEL, MAX_LABELS
from app.errors import BadRequest, UnknownParameter, combine_errors

Parsed = TypeVar("Parsed", bound=BaseModel)
MAX_METADATA_PAIRS = 16

EACH_MAY_BE_ABSENT = 'Each may be absent, null or "auto".'
Hyperparameters = Annotated[dict[str, Any] | None, WithJsonSchema(parameters.SUPERVISED_HYPERPARAMETERS)]
DpoHyperparameters = Annotated[dict[str, Any] | None, WithJsonSchema(parameters.DPO_HYPERPARAMETERS)]
AllHyperparameters = Annotated[dict[str, Any] | None, WithJsonSchema(parameters.ALL_HYPERPARAMETERS)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)]
Id = Annotated[str, Field(min_length=1, max_length=256)]
# Azure's scripts send them in any case; LiteLLM sends 1 to every Azure endpoint by default.
AZURE_TRAINING_TYPES = ("standard", "globalstandard", "developertier", "1")


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


class Strict(Body):
    """Strict JSON types: "7" is not a number, and 7 is not text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Supervised(Strict):
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    hyperparameters: Annotated[Hyperparameters, Field(description=EACH_MAY_BE_ABSENT)] = None


class Dpo(Strict):
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    hyperparameters: Annotated[DpoHyperparameters, Field(description=EACH_MAY_BE_ABSENT)] = None


class Method(Strict):
    # Unknown keys are refused by the domain, which has the list of parameters.
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    type: Annotated[
        str,
        WithJsonSchema({"enum": ["supervised", "dpo"]}),
        Field(description="What the model learns: answers or text, or a preference between two answers."),
    ] = "supervised"
    supervised: Annotated[Supervised | None, Field(description="For `type` supervised.")] = None
    dpo: Annotated[Dpo | None, Field(description="For `type` dpo.")] = None


WorkerLabel = Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]


class CreateJob(Strict):
    model: Annotated[
        Id, Field(description="A base model, or an `ft:` model to train further; GET /v1/models lists them.")
    ]
    training_file: Annotated[Id, Field(description="A file with purpose fine-tune.")]
    validation_file: Id | None = None
    method: Annotated[Method | None, Field(description="Default: `supervised`.")] = None
    hyperparameters: Annotated[
        AllHyperparameters, Field(description="OpenAI's older place for the same parameters.")
    ] = None
    suffix: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=64,
            description="A word for the name of the `ft:` model; characters that a URL cannot hold become dashes.",
        ),
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description="Default: a random number, which the job shows.")
    ] = None
    sample_prompts: Annotated[
        list[SamplePrompt] | None,
        Field(
            max_length=MAX_SAMPLE_PROMPTS,
            description="Base model and adapter answer each with 64 tokens, at every validation or end of an epoch.",
        ),
    ] = None
    evaluation: Annotated[
        EvaluationRequest | None,
        Field(description="An evaluation of the result on held-out rows, as soon as the training has succeeded."),
    ] = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Any] | None, Field(description="Not supported: null or empty.")] = None
    lora: Annotated[Any, WithJsonSchema(parameters.LORA)] = None
    quantization: Annotated[Any, WithJsonSchema(parameters.QUANTIZATION)] = None
    priority: Annotated[
        int | None,
        Field(
            ge=LOWEST_PRIORITY,
            le=HIGHEST_PRIORITY,
            description="Order among the queued jobs of your project: higher runs first. Default: 0.",
        ),
    ] = None
    urgent: Annotated[
        bool | None,
        Field(
            description="Run before the jobs of all projects that are not urgent. For admin keys and allowed projects."
        ),
    ] = None
    worker_labels: Annotated[
        list[WorkerLabel] | None,
        Field(max_length=MAX_LABELS, description="Only a worker with all of these labels runs the job."),
    ] = None
    deliver_to: Annotated[
        list[Id] | None,
        Field(
            max_length=16,
            description="Names of delivery targets that get the adapter. Default: targets with `default`; []: none.",
        ),
    ] = None
    training_type: Annotated[
        TrainingType | None,
        Field(
            alias="trainingType",
            description="Azure's choice of place and price of training. It has no effect, and an event records that.",
        ),
    ] = None


class UpdateJob(Strict):
    """Absent fields keep their values; null restores the default."""

    priority: Annotated[
        int | None,
        Field(
            ge=LOWEST_PRIORITY,
            le=HIGHEST_PRIORITY,
            description="Order among the queued jobs of your project: higher runs first; null: 0. Until the job ends.",
        ),
    ] = None
    metadata: Annotated[Metadata | None, Field(description="Replaces all pairs of the job; null removes them.")] = None


def parse_body(model: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """Parse a body whose shape is all there is to check. Raises BadRequest with all problems."""
    parsed, problems = check_shape(model, body)
    if parsed is None or problems:
        raise combine_errors(problems)
    return parsed


def check_shape(model: type[Parsed], body: Mapping[str, Any]) -> tuple[Parsed | None, list[BadRequest]]:
    """The parsed body, and the problems of its shape.

    Invalid keys are left out, so that the domain can check the rest and one error has all problems. None if the rest is
    invalid, too.
    """
    body = _limit_unknown_keys(model, body)
    try:
        return model.model_validate(body), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = [_with_location_hint(problem) for problem in as_problems(errors, model)]
    invalid_keys = {error_item["loc"][0] for error_item in errors}
    try:
        return model.model_validate({key: value for key, value in body.items() if key not in invalid_keys}), problems
    except ValidationError:
        return None, problems


def _limit_unknown_keys(model: type[BaseModel], body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body` with at most MAX_PROBLEMS unknown keys: there may be 100,000, and validation of each takes time."""
    allowed = _names(model)
    unknown = [key for key in body if key not in allowed]
    dropped = set(unknown[MAX_PROBLEMS:])
    return {key: value for key, value in body.items() if key not in dropped} if dropped else body


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


def _with_location_hint(problem: BadRequest) -> BadRequest:
    """Add the location of a training parameter to its error: other services accept it at the top level."""
    if not isinstance(problem, UnknownParameter) or problem.param not in IN_HYPERPARAMETERS:
        return problem
    name = problem.param
    return UnknownParameter(
        f"unknown parameter {name}: move it into the hyperparameters, such as method.supervised.hyperparameters.{name}",
        name,
    )


def without_effect(request: CreateJob) -> list[str]:
    """Notes on parameters that are accepted for compatibility with other services and have no effect."""
    if request.training_type is None:
        return []
    return [
        f"trainingType {as_json(request.training_type)} was ignored: it selects place and price at Azure; "
        "here every job trains on this server's own workers"
    ]
