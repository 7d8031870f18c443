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

from app.domain.evaluations.templates import paths_of, uses_answer

MAX_GRADERS = 16
MAX_TEMPLATE_CHARACTERS = 20_000
TEXTS = ("input_text", "output_text")
OUTPUT, REFERENCE = "{{ sample.output_text }}", "{{ item.reference_answer }}"
METRICS = ("fuzzy_match", "bleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
# Of held-out rows whose evaluation no request describes: the grader by its type, and the longest answer in tokens.
SIMILARITY = {"input": OUTPUT, "reference": REFERENCE, "evaluation_metric": "fuzzy_match"}
DEFAULT_EVALUATIONS: dict[str, tuple[dict[str, str], int]] = {
    "label_accuracy": ({"type": "label_accuracy", "name": "label"}, 64),
    "json_fields": ({"type": "json_fields", "name": "fields"}, 256),
    "text_similarity": ({"type": "text_similarity", "name": "similarity"} | SIMILARITY, 256),
}
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
Name = Annotated[
    str, Field(min_length=1, max_length=64, description="The name in the results, different for each grader.")
]
GradedText = Annotated[Template, Field(description="The graded text, a template.")]
ExpectedText = Annotated[Template, Field(description="The expected text, a template.")]
Threshold = Annotated[
    Annotated[float, Field(allow_inf_nan=False)] | None,
    Field(description="The summary has the share of scores from this value on."),
]


class Shape(BaseModel):
    """Strict JSON types; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class StringCheck(Shape):
    """1 if the comparison holds, else 0."""

    type: Literal["string_check"]
    """The type of the grader."""
    name: Name
    input: GradedText
    reference: ExpectedText
    operation: Literal["eq", "ne", "like", "ilike"]
    """eq: equal; ne: not equal; like: the input contains the reference; ilike: the same in any case."""


class TextSimilarity(Shape):
    """0 to 1: rapidfuzz's ratio, sacrebleu's sentence BLEU, or the F measure of rouge-score."""

    type: Literal["text_similarity"]
    """The type of the grader."""
    name: Name
    input: GradedText
    reference: ExpectedText
    evaluation_metric: Annotated[str, Field(json_schema_extra={"enum": list(METRICS)})]
    """How the similarity is measured."""
    pass_threshold: Threshold = None

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
    """The author of the message."""
    content: Annotated[Template, BeforeValidator(_text_of)]
    """A text; `{"type": "input_text", "text": ...}`, as OpenAI returns it, is one, too."""
    type: Literal["message"] | None = None
    """OpenAI's; it has no effect."""


class SamplingParameters(Shape):
    """Sent to the model that scores, if given."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 by default."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Nucleus sampling."""
    seed: int | None = None
    """The seed of the sampling."""
    max_completions_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The longest answer, in tokens."""
    reasoning_effort: Annotated[str, Field(max_length=16)] | None = None
    """For models that reason."""


class ScoreModel(Shape):
    """The number that a model of an endpoint answers, limited to `range`."""

    type: Literal["score_model"]
    """The type of the grader."""
    name: Name
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The model that scores."""
    input: Annotated[list[GraderMessage], Field(min_length=1, max_length=32)]
    """The messages to the model, with templates."""
    endpoint: Annotated[str | None, Field(max_length=64)] = None
    """An endpoint that the operator has named. Default: the only one."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = [0, 1]
    """Lowest and highest score."""
    sampling_params: SamplingParameters | None = None
    """Parameters of the request to the model."""
    pass_threshold: Threshold = None

    @field_validator("range")
    @classmethod
    def _check_range(cls, limits: list[float]) -> list[float]:
        if not limits[0] < limits[1]:
            raise ValueError("the first number must be below the second")
        return limits


def _check_item_template(text: str) -> str:
    if uses_answer(text):
        raise ValueError("this template may use {{ item... }} only, as it is the expected answer")
    return text


ExpectedItem = Annotated[ExpectedText, AfterValidator(_check_item_template)]


class LabelAccuracy(Shape):
    """1 if the answer without white space around it is the label, else 0. The summary has a confusion matrix."""

    type: Literal["label_accuracy"]
    """The type of the grader."""
    name: Name
    input: GradedText = OUTPUT
    reference: ExpectedItem = REFERENCE
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None, Field(min_length=2, max_length=100)
    ] = None
    """All labels. Default: those of the file."""
    ignore_case: bool = False
    """Whether Yes and yes are the same label."""


class JsonValid(Shape):
    """1 if the answer is a JSON object, else 0."""

    type: Literal["json_valid"]
    """The type of the grader."""
    name: Name
    input: GradedText = OUTPUT


class JsonFields(Shape):
    """The share of the fields of the expected JSON object that the answer has with the same value; 0 without JSON."""

    type: Literal["json_fields"]
    """The type of the grader."""
    name: Name
    input: GradedText = OUTPUT
    reference: ExpectedItem = REFERENCE
    fields: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None, Field(min_length=1, max_length=100)
    ] = None
    """The compared fields. Default: all of the expected object."""


Grader = Annotated[
    StringCheck | TextSimilarity | ScoreModel | LabelAccuracy | JsonValid | JsonFields, Field(discriminator="type")
]


BINARY_TYPES = ("string_check", "label_accuracy", "json_valid")  # with the scores 0 and 1


def templates_of(grader: Any) -> list[str]:
    """All templates of a grader."""
    if isinstance(grader, ScoreModel):
        return [message.content for message in grader.input]
    return [text for text in (grader.input, getattr(grader, "reference", None)) if text is not None]


class Reference(Shape):
    """A third source of answers: a model of an endpoint, or a field of the rows that has recorded answers."""

    endpoint: Annotated[str | None, Field(max_length=64)] = None
    """An endpoint that the operator has named."""
    model: Annotated[str | None, Field(max_length=256)] = None
    """The model at the endpoint."""
    field: Annotated[str | None, Field(max_length=64)] = None
    """A field of the rows with recorded answers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.field is None):
            raise ValueError("give a model (of an endpoint), or a field (of the rows), and not both")
        if self.field is not None and self.endpoint is not None:
            raise ValueError("a field of the rows has no endpoint")
        return self


class PromoteIf(Shape):
    """The condition for the delivery of the adapter."""

    grader: str
    """The name of a grader of this evaluation."""
    margin: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """How far below 0 the interval of the difference may begin. Default: 0."""


class EvaluationSettings(Shape):
    """The requested evaluation and its graders."""

    graders: Annotated[list[Grader], Field(max_length=MAX_GRADERS)] = []
    """Without graders the answers are collected and not scored."""
    max_rows: Annotated[int, Field(ge=1, le=10_000)] = 500
    """A larger file is sampled: a random selection, always the same one."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    """The longest answer, in tokens."""
    base_precision: Literal["trained", "16-bit"] = "trained"
    """How the base model is loaded for all answers: as in the training, or unquantized."""
    reference: Reference | None = None
    """A model to compare the adapter with."""
    promote_if: PromoteIf | None = None
    """Deliver the adapter only if it is no worse."""

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


SHORT_ANSWERS = EvaluationSettings(max_new_tokens=64)  # of a comparison on the machine of a client


class EvaluationRequest(EvaluationSettings):
    """The `evaluation` of a job: it runs when the training has succeeded."""

    file: Annotated[str, Field(min_length=1, max_length=256)]
    """A file of held-out rows: purpose evals or fine-tune."""

    def settings(self) -> EvaluationSettings:
        return EvaluationSettings.model_validate(self.model_dump(include=set(EvaluationSettings.model_fields)))


class CreateEvaluation(EvaluationRequest):
    checkpoint: Annotated[str | None, Field(max_length=256)] = None
    """Id or model name of a kept checkpoint. Default: the job's result."""


FORWARD_SHARE = 3.0  # a training step takes about three times a forward
DECODE_FACTOR = 3.0  # a generated token takes about three times a token of a prompt, in small batches


class EvaluationPlan(BaseModel):
    """An upper bound: most answers end before `max_new_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: int | None
    """Rows to evaluate; null until a worker has read the file."""
    prompt_tokens: int | None
    """Tokens of all prompts; null until a worker counts them."""
    max_answer_tokens: int | None
    """The most tokens that both models may generate."""
    estimated_seconds: float | None
    """An upper estimate of the generation; null: unknown."""
    basis: Literal["measured", "training_speed"] | None
    """What the estimate comes from: an earlier evaluation of this base, or this job's training."""


def default_evaluation(grader_type: str | None, longest_row_bytes: int, context_length: int) -> dict[str, Any] | None:
    """The evaluation of held-out rows that no request describes, without its file.

    None without a grader, and if a row may be longer than the context: a token has at least one byte.
    """
    if grader_type is None:
        return None
    grader, max_new_tokens = DEFAULT_EVALUATIONS[grader_type]
    fits = longest_row_bytes + max_new_tokens <= context_length
    return {"graders": [grader], "max_new_tokens": max_new_tokens} if fits else None


def make_plan(
    settings: EvaluationSettings,
    rows: int | None,
    prompt_tokens: int | None,
    seconds_per_answer: float | None,
    progress: dict[str, Any] | None,
) -> EvaluationPlan:
    """The plan for `rows` rows. `progress` is that of the job, which has the speed of its training."""
    if rows is None:
        return EvaluationPlan(rows=None, prompt_tokens=None, max_answer_tokens=None, estimated_seconds=None, basis=None)
    max_answer_tokens = 2 * rows * settings.max_new_tokens
    training_speed = (progress or {}).get("tokens_per_second")
    seconds, basis = None, None
    if seconds_per_answer is not None:
        seconds, basis = 2 * rows * seconds_per_answer, "measured"
    elif training_speed:
        tokens = 2 * (prompt_tokens or 0) + DECODE_FACTOR * max_answer_tokens
        seconds, basis = tokens / (FORWARD_SHARE * training_speed), "training_speed"
    return EvaluationPlan(
        rows=rows,
        prompt_tokens=prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        estimated_seconds=None if seconds is None else round(seconds, 1),
        basis=basis,
    )
