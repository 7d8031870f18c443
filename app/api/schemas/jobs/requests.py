"""The create body of a job: its shape. What its knobs may be is the domain's to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from app.api.error_handlers import MAX_PROBLEMS, as_problems
from app.api.schemas.common import Body
from app.api.schemas.jobs import parameters
from app.domain.error_text.json_text import as_json
from app.domain.jobs.request_aliases import KNOBS
from app.domain.jobs.resolve import MAX_SEED
from app.domain.jobs.spec import MAX_SAMPLE_PROMPTS, SamplePrompt
from app.domain.scheduling.fair_share import HIGHEST_PRIORITY, LOWEST_PRIORITY
from app.domain.scheduling.worker_capacity import LABEL, MAX_LABELS
from app.errors import BadRequest, UnknownParameter, combine_errors

Parsed = TypeVar("Parsed", bound=BaseModel)
MAX_METADATA_PAIRS = 16

Hyperparameters = Annotated[dict[str, Any] | None, WithJsonSchema(parameters.HYPERPARAMETERS)]
DpoHyperparameters = Annotated[dict[str, Any] | None, WithJsonSchema(parameters.DPO_HYPERPARAMETERS)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_PAIRS)]
Id = Annotated[str, Field(min_length=1, max_length=256)]
# Azure's scripts write them in any case; LiteLLM sends 1 to every Azure address unless told otherwise.
AZURE_TRAINING_TYPES = ("standard", "globalstandard", "developertier", "1")


def _one_of_azures(value: Any) -> str | int:
    if isinstance(value, bool | float) or value == "1" or str(value).lower() not in AZURE_TRAINING_TYPES:
        raise ValueError("must be one of Azure's training types, Standard, GlobalStandard or DeveloperTier")
    found: str | int = value
    return found


TrainingType = Annotated[
    Any, AfterValidator(_one_of_azures), WithJsonSchema({"enum": ["Standard", "GlobalStandard", "DeveloperTier", 1]})
]


class Strict(Body):
    """JSON has types: "7" is no number here and 7 is no text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Supervised(Strict):
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    hyperparameters: Hyperparameters = None


class Dpo(Strict):
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    hyperparameters: DpoHyperparameters = None


class Method(Strict):
    # Unknown keys pass here and are refused by the domain, which knows what there is.
    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})

    type: Annotated[str, WithJsonSchema({"enum": ["supervised", "dpo"]})] = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None


WorkerLabel = Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]


class CreateJob(Strict):
    model: Annotated[Id, Field(description="A base model, or an `ft:` model to go on from: see GET /v1/models.")]
    training_file: Annotated[Id, Field(description="A file with purpose fine-tune.")]
    validation_file: Id | None = None
    method: Method | None = None
    hyperparameters: Annotated[DpoHyperparameters, Field(description="OpenAI's older place for the same knobs.")] = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    sample_prompts: Annotated[
        list[SamplePrompt] | None,
        Field(
            max_length=MAX_SAMPLE_PROMPTS,
            description="Answered by the base and by the adapter, 64 tokens each, at every validation or epoch's end.",
        ),
    ] = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Any], Field(description="None is offered: null or empty.")] | None = None
    lora: Annotated[Any, WithJsonSchema(parameters.LORA)] = None
    quantization: Annotated[Any, WithJsonSchema(parameters.QUANTIZATION)] = None
    priority: Annotated[
        int | None,
        Field(
            ge=LOWEST_PRIORITY,
            le=HIGHEST_PRIORITY,
            description="Among the waiting jobs of your project: higher goes first. Absent: 0.",
        ),
    ] = None
    urgent: Annotated[
        bool | None,
        Field(description="Go before every project's other jobs. For admin keys, and projects that were allowed to."),
    ] = None
    worker_labels: Annotated[
        list[WorkerLabel] | None,
        Field(max_length=MAX_LABELS, description="Only a worker that has all of these labels takes the job."),
    ] = None
    training_type: Annotated[
        TrainingType | None,
        Field(
            alias="trainingType",
            description="Azure's: where and at which price it trains. No effect; an event says so.",
        ),
    ] = None


class UpdateJob(Strict):
    """What is absent stays as it is; null is what it would be if it had never been given."""

    priority: Annotated[
        int | None,
        Field(
            ge=LOWEST_PRIORITY,
            le=HIGHEST_PRIORITY,
            description="Among the waiting jobs of your project: higher goes first; null: 0. Until the job has ended.",
        ),
    ] = None
    metadata: Annotated[
        Metadata | None, Field(description="Instead of all the pairs that the job has; null takes them away.")
    ] = None


def parsed(model: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """For bodies that are nothing but their shape. Raises BadRequest naming everything that is wrong."""
    found, problems = check_shape(model, body)
    if found is None or problems:
        raise combine_errors(problems)
    return found


def check_shape(model: type[Parsed], body: Mapping[str, Any]) -> tuple[Parsed | None, list[BadRequest]]:
    """The parsed body and what is wrong with its shape.

    What is wrong is left out, so that the rest can be checked and everything told at once; None when nothing is left.
    """
    body = _without_most_unknown(model, body)
    try:
        return model.model_validate(body), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = [_told_its_place(problem) for problem in as_problems(errors, model)]
    wrong = {found["loc"][0] for found in errors}
    try:
        return model.model_validate({key: value for key, value in body.items() if key not in wrong}), problems
    except ValidationError:
        return None, problems


def _without_most_unknown(model: type[BaseModel], body: Mapping[str, Any]) -> Mapping[str, Any]:
    """`body` with no more unknown keys than a message could name: there may be 100,000, and each takes its time."""
    known = {field.alias or name for name, field in model.model_fields.items()}
    unknown = [key for key in body if key not in known]
    left_out = set(unknown[MAX_PROBLEMS:])
    return {key: value for key, value in body.items() if key not in left_out} if left_out else body


def _told_its_place(problem: BadRequest) -> BadRequest:
    """Other services take the knobs beside the model; here that key has a place of its own."""
    if not isinstance(problem, UnknownParameter) or problem.param not in KNOBS:
        return problem
    name = problem.param
    return UnknownParameter(
        f"unknown parameter {name}: it belongs into hyperparameters, such as method.supervised.hyperparameters.{name}",
        name,
    )


def without_effect(request: CreateJob) -> list[str]:
    """What was taken because scripts of other services send it, and changes nothing about what is trained."""
    if request.training_type is None:
        return []
    return [
        f"trainingType {as_json(request.training_type)} was ignored: it says where Azure trains and at which price; "
        "here every job trains on this server's own workers"
    ]
