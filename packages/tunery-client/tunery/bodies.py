"""Written by `make openapi` from the OpenAPI document. Change the code, not this file."""

from __future__ import annotations

from typing import Literal, Required, TypedDict


class Lora(TypedDict, total=False):
    target_modules: Literal["auto"] | list[str] | str | None
    r: Literal["auto"] | int | None
    alpha: Literal["auto"] | float | None
    dropout: Literal["auto"] | float | None
    use_rslora: Literal["auto"] | bool | None
    use_dora: Literal["auto"] | bool | None
    rank_pattern: Literal["auto"] | dict[str, int] | None
    alpha_pattern: Literal["auto"] | dict[str, float] | None
    modules_to_save: Literal["auto"] | list[str] | str | None
    experts: Literal["auto"] | bool | None
    target_parameters: Literal["auto"] | list[str] | str | None
    bias: Literal["auto"] | Literal["none"] | None
    init: Literal["auto"] | Literal["default"] | None


class Quantization(TypedDict, total=False):
    bits: Literal["auto"] | Literal[4, 8] | None
    type: Literal["auto"] | Literal["nf4", "fp4"] | None
    compute_dtype: Literal["auto"] | Literal["bfloat16", "float16", "float32"] | None
    double_quant: Literal["auto"] | bool | None


class StringCheck(TypedDict, total=False):
    type: Required[Literal["string_check"]]
    name: Required[str]
    input: Required[str]
    reference: Required[str]
    operation: Required[Literal["eq", "ne", "like", "ilike"]]


class TextSimilarity(TypedDict, total=False):
    type: Required[Literal["text_similarity"]]
    name: Required[str]
    input: Required[str]
    reference: Required[str]
    evaluation_metric: Required[
        Literal["fuzzy_match", "bleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
    ]
    pass_threshold: float | None


class GraderMessage(TypedDict, total=False):
    role: Required[Literal["system", "developer", "user", "assistant"]]
    content: Required[str]
    type: Literal["message"] | None


class SamplingParameters(TypedDict, total=False):
    temperature: float | None
    top_p: float | None
    seed: int | None
    max_completions_tokens: int | None
    reasoning_effort: str | None


class ScoreModel(TypedDict, total=False):
    type: Required[Literal["score_model"]]
    name: Required[str]
    model: Required[str]
    input: Required[list[GraderMessage]]
    endpoint: str | None
    range: list[float]
    sampling_params: SamplingParameters | None
    pass_threshold: float | None


class LabelAccuracy(TypedDict, total=False):
    type: Required[Literal["label_accuracy"]]
    name: Required[str]
    input: str
    reference: str
    labels: list[str] | None
    ignore_case: bool


class JsonValid(TypedDict, total=False):
    type: Required[Literal["json_valid"]]
    name: Required[str]
    input: str


class JsonFields(TypedDict, total=False):
    type: Required[Literal["json_fields"]]
    name: Required[str]
    input: str
    reference: str
    fields: list[str] | None


class Reference(TypedDict, total=False):
    endpoint: str | None
    model: str | None
    field: str | None


class PromoteIf(TypedDict, total=False):
    grader: Required[str]
    margin: float


class Evaluation(TypedDict, total=False):
    graders: list[StringCheck | TextSimilarity | ScoreModel | LabelAccuracy | JsonValid | JsonFields]
    max_rows: int
    max_new_tokens: int
    base_precision: Literal["trained", "16-bit"]
    reference: Reference | None
    promote_if: PromoteIf | None
    file: Required[str]


class EarlyStopping(TypedDict, total=False):
    patience: int
    threshold: float


class KtoHyperparameters(TypedDict, total=False):
    learning_rate_multiplier: Literal["auto"] | float | None
    learning_rate: Literal["auto"] | float | None
    n_epochs: Literal["auto"] | int | None
    batch_size: Literal["auto"] | int | None
    warmup_ratio: Literal["auto"] | float | None
    weight_decay: Literal["auto"] | float | None
    max_grad_norm: Literal["auto"] | float | None
    optimizer: Literal["auto"] | Literal["adamw", "adamw_8bit"] | None
    lr_scheduler_type: Literal["auto"] | Literal["linear", "cosine", "constant"] | None
    context_length: Literal["auto"] | int | None
    packing: Literal["auto"] | bool | None
    max_steps: Literal["auto"] | int | None
    early_stopping: Literal["auto"] | EarlyStopping | bool | None
    eval_steps: Literal["auto"] | int | None
    promote_best: Literal["auto"] | bool | None
    beta: Literal["auto"] | float | None
    desirable_weight: Literal["auto"] | float | None
    undesirable_weight: Literal["auto"] | float | None
