"""Graders: OpenAI's shapes (`string_check`, `text_similarity`, `score_model`), and three that it does not have.

`label_accuracy`, `json_valid` and `json_fields` are extensions. A score is a number; a higher one is better.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.domain.evaluations.templates import SAMPLE, paths_of

MAX_GRADERS = 16
MAX_TEMPLATE_CHARACTERS = 20_000
TEXTS = ("input_text", "output_text")
OUTPUT, REFERENCE = "{{ sample.output_text }}", "{{ item.reference_answer }}"
METRICS = ("fuzzy_match", "bleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
REFUSED_METRICS = {
    "cosine": "it needs an embedding model",
    "gleu": "no well-kept library computes it",
    "meteor": "it needs word lists that are not installed",
}


def _check_template(text: str) -> str:
    paths_of(text)
    return text


def _text_of(content: Any) -> Any:
    """The text of a content in the shape in which OpenAI's evals return it; anything else as it is."""
    parts = content if isinstance(content, list) and content else [content]
    is_text = all(isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] in TEXTS for part in parts)
    texts = [part["text"] for part in parts] if is_text else []
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else content


Template = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS), AfterValidator(_check_template)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]


class Shape(BaseModel):
    """Strict JSON types; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StringCheck(Shape):
    """1 if the comparison holds, else 0."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Annotated[
        Literal["eq", "ne", "like", "ilike"],
        Field(
            description="eq: equal; ne: not equal; like: the input contains the reference; ilike: the same in any case."
        ),
    ]


class TextSimilarity(Shape):
    """0 to 1: rapidfuzz's ratio, sacrebleu's sentence BLEU, or the F measure of rouge-score."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Annotated[str, Field(json_schema_extra={"enum": list(METRICS)})]
    pass_threshold: Threshold | None = None

    @field_validator("evaluation_metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        if metric in METRICS:
            return metric
        reason = f" ({REFUSED_METRICS[metric]})" if metric in REFUSED_METRICS else ""
        raise ValueError(f"this metric is not offered here{reason}; allowed are {', '.join(METRICS)}")


class GraderMessage(Shape):
    """A message to the model that scores."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Template,
        BeforeValidator(_text_of),
        Field(description='A text; `{"type": "input_text", "text": ...}`, as OpenAI returns it, is one, too.'),
    ]
    type: Literal["message"] | None = None


class SamplingParameters(Shape):
    """Sent to the model that scores, if given."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    max_completions_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=16)] | None = None


class ScoreModel(Shape):
    """The number that a model of an endpoint answers, limited to `range`."""

    type: Literal["score_model"]
    name: Name
    model: Annotated[str, Field(min_length=1, max_length=256, description="The model that scores.")]
    input: Annotated[list[GraderMessage], Field(min_length=1, max_length=32)]
    endpoint: Annotated[
        str | None, Field(max_length=64, description="An endpoint that the operator has named. Default: the only one.")
    ] = None
    range: Annotated[list[float], Field(min_length=2, max_length=2, description="Lowest and highest score.")] = [0, 1]
    sampling_params: SamplingParameters | None = None
    pass_threshold: Threshold | None = None

    @field_validator("range")
    @classmethod
    def _check_range(cls, limits: list[float]) -> list[float]:
        if not limits[0] < limits[1]:
            raise ValueError("the first number must be below the second")
        return limits


def _check_item_template(text: str) -> str:
    if any(path.namespace == SAMPLE for path in paths_of(text)):
        raise ValueError("this template may use {{ item... }} only, as it is the expected answer")
    return text


ItemTemplate = Annotated[Template, AfterValidator(_check_item_template)]


class LabelAccuracy(Shape):
    """1 if the answer without white space around it is the label, else 0. The summary has a confusion matrix."""

    type: Literal["label_accuracy"]
    name: Name
    input: Template = OUTPUT
    reference: ItemTemplate = REFERENCE
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
        Field(min_length=2, max_length=100, description="All labels. Default: those of the file."),
    ] = None
    ignore_case: Annotated[bool, Field(description="Whether Yes and yes are the same label.")] = False


class JsonValid(Shape):
    """1 if the answer is a JSON object, else 0."""

    type: Literal["json_valid"]
    name: Name
    input: Template = OUTPUT


class JsonFields(Shape):
    """The share of the fields of the expected JSON object that the answer has with the same value; 0 without JSON."""

    type: Literal["json_fields"]
    name: Name
    input: Template = OUTPUT
    reference: ItemTemplate = REFERENCE
    fields: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
        Field(min_length=1, max_length=100, description="The compared fields. Default: all of the expected object."),
    ] = None


Grader = Annotated[
    StringCheck | TextSimilarity | ScoreModel | LabelAccuracy | JsonValid | JsonFields, Field(discriminator="type")
]


GRADER_TYPES = ("string_check", "text_similarity", "score_model", "label_accuracy", "json_valid", "json_fields")


def templates_of(grader: Any) -> list[str]:
    """All templates of a grader."""
    if isinstance(grader, ScoreModel):
        return [message.content for message in grader.input]
    return [text for text in (grader.input, getattr(grader, "reference", None)) if text is not None]


class Reference(Shape):
    """A third source of answers: a model of an endpoint, or a field of the rows that has recorded answers."""

    endpoint: Annotated[str | None, Field(max_length=64, description="An endpoint that the operator has named.")] = None
    model: Annotated[str | None, Field(max_length=256, description="The model at the endpoint.")] = None
    field: Annotated[
        str | None,
        Field(max_length=64, description="A field of the rows with recorded answers."),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.field is None):
            raise ValueError("give a model (of an endpoint), or a field (of the rows), and not both")
        if self.field is not None and self.endpoint is not None:
            raise ValueError("a field of the rows has no endpoint")
        return self


class PromoteIf(Shape):
    """The condition for the delivery of the adapter."""

    grader: Annotated[str, Field(description="The name of a grader of this evaluation.")]
    margin: Annotated[
        float,
        Field(ge=0, le=1e6, description="How far below 0 the interval of the difference may begin. Default: 0."),
    ] = 0.0


class EvaluationSettings(Shape):
    """The requested evaluation and its graders."""

    graders: Annotated[
        list[Grader],
        Field(max_length=MAX_GRADERS, description="Without graders the answers are collected and not scored."),
    ] = []
    max_rows: Annotated[
        int,
        Field(ge=1, le=10_000, description="A larger file is sampled: a random selection, always the same one."),
    ] = 500
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="The longest answer, in tokens.")] = 256
    base_precision: Annotated[
        Literal["trained", "16-bit"],
        Field(description="How the base model is loaded for all answers: as in the training, or unquantized."),
    ] = "trained"
    reference: Annotated[Reference | None, Field(description="A model to compare the adapter with.")] = None
    promote_if: Annotated[PromoteIf | None, Field(description="Deliver the adapter only if it is no worse.")] = None

    @field_validator("graders")
    @classmethod
    def _check_names(cls, graders: list[Grader]) -> list[Grader]:
        names = [grader.name for grader in graders]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two graders are named {', '.join(repeated)}; give each its own name")
        return graders

    @field_validator("promote_if")
    @classmethod
    def _check_grader(cls, promote_if: PromoteIf | None, info: ValidationInfo) -> PromoteIf | None:
        names = [grader.name for grader in info.data.get("graders", ())]
        if promote_if is not None and "graders" in info.data and promote_if.grader not in names:
            raise ValueError(f"grader must be the name of a grader of this evaluation ({', '.join(names) or 'none'})")
        return promote_if


class EvaluationRequest(EvaluationSettings):
    """The `evaluation` of a job: it runs when the training has succeeded."""

    file: Annotated[
        str, Field(min_length=1, max_length=256, description="A file of held-out rows: purpose evals or fine-tune.")
    ]

    def settings(self) -> EvaluationSettings:
        return EvaluationSettings.model_validate(self.model_dump(include=set(EvaluationSettings.model_fields)))
