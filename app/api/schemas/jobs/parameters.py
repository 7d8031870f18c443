"""How the document describes the parameters of a job.

app.domain.jobs.resolve checks them; a test holds the two together.
"""

from __future__ import annotations

from typing import Any

from app.domain.jobs import bounds
from app.domain.jobs.bounds import Bounds
from app.domain.jobs.request_aliases import LORA_ALIASES, LORA_KEYS

JsonSchema = dict[str, Any]


def _auto(schema: JsonSchema, description: str) -> JsonSchema:
    return {"anyOf": [{"const": "auto"}, schema, {"type": "null"}], "description": description}


def _within(bounds: Bounds) -> JsonSchema:
    return {"type": "number", "minimum": bounds.least, "maximum": bounds.most}


def _nullable(schema: JsonSchema, description: str) -> JsonSchema:
    return {"anyOf": [schema, {"type": "null"}], "description": description}


TARGET_MODULES: JsonSchema = {
    "anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}, {"type": "null"}],
    "description": '"all-linear" (every linear layer but lm_head; the default) or names of the base model\'s layers.',
}
RANK = _auto({"type": "integer", "minimum": 1, "maximum": 256}, "Rank of the adapter; 16 by default.")
ALPHA = _auto(_within(bounds.ALPHA), "Scale: the update is alpha / r times BA; 2r by default.")
DROPOUT = _auto(_within(bounds.DROPOUT), "Dropout before the adapter while training; 0 by default.")
LORA_KNOBS: dict[str, JsonSchema] = {
    "r": RANK,
    "alpha": ALPHA,
    "dropout": DROPOUT,
    "target_modules": TARGET_MODULES,
    "use_rslora": _nullable({"type": "boolean"}, "Scale by alpha / sqrt(r) instead (rsLoRA); false by default."),
    "use_dora": _nullable({"type": "boolean"}, "Train the length of each row of a weight, too (DoRA); slower."),
    "rank_pattern": _nullable(
        {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 256}},
        "Ranks of single layers: the end of a layer's name, or a regular expression (RE2) for it -> rank.",
    ),
    "alpha_pattern": _nullable(
        {"type": "object", "additionalProperties": _within(bounds.ALPHA)},
        "The same for alpha.",
    ),
    "modules_to_save": {
        "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}, {"type": "null"}],
        "description": "Modules to train whole and save beside the adapter: norms, embed_tokens, lm_head.",
    },
    "bias": _nullable({"const": "none"}, "Trained biases are not offered."),
    "init": _nullable({"const": "default"}, "Other initialisations are not offered."),
}
LORA: JsonSchema = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {alias: LORA_KNOBS[name] for alias, name in LORA_KEYS.items()},
        },
        {"const": True},
        {"type": "null"},
    ],
    "description": "The adapter. Absent, null and true mean the defaults.",
}
QUANTIZATION: JsonSchema = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "bits": _nullable({"enum": [4, 8]}, "Bits per weight of the frozen base; 4 by default."),
                "type": _nullable({"enum": ["nf4", "fp4"]}, "Of 4 bits; NF4 by default."),
                "double_quant": _nullable(
                    {"type": "boolean"}, "Of 4 bits: quantise the block scales too; true by default."
                ),
                "compute_dtype": _nullable(
                    {"enum": ["bfloat16", "float16", "float32"]},
                    "bfloat16 by default, or what is faster where it runs.",
                ),
            },
        },
        {"type": "null"},
    ],
    "description": "How the frozen base is held. Absent means QLoRA (4-bit NF4, double quantisation, bf16 compute); "
    "an explicit null means 16-bit LoRA.",
}
EARLY_STOPPING: JsonSchema = {
    "anyOf": [
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "patience": {
                    "type": "integer", "minimum": 1, "maximum": 100, "default": 3, "description": "Validations.",
                },
                "threshold": _within(bounds.EARLY_STOPPING_THRESHOLD) | {"default": 0, "description": "In nats."},
            },
        },
        {"type": "boolean"},
        {"const": "auto"},
        {"type": "null"},
    ],
    "description": "End when the full validation loss was not more than `threshold` nats below its lowest in "
    "`patience` validations in a row. Off by default. Needs a validation_file.",
}  # fmt: skip
PROMOTE_BEST = _auto(
    {"type": "boolean"},
    "The result is the adapter with the lowest full validation loss, not the last one. On with early_stopping, else "
    "off. Needs a validation_file.",
)
TRAINING_KNOBS: dict[str, JsonSchema] = {
    "n_epochs": _auto(
        {"type": "integer", "minimum": 1, "maximum": 50}, "Passes over the data; OpenAI's rule by default."
    ),
    "batch_size": _auto(
        {"type": "integer", "minimum": 1, "maximum": 256},
        "Examples per optimizer step; by default examples / 32, at most 8.",
    ),
    "learning_rate_multiplier": _auto(
        _within(bounds.LEARNING_RATE_MULTIPLIER),
        "Times the automatic learning rate, of which DPO takes a tenth; 1 by default.",
    ),
    "learning_rate": _auto(
        _within(bounds.LEARNING_RATE),
        "Absolute; excludes a multiplier. By default the base model's, adjusted to the run's length.",
    ),
    "warmup_ratio": _auto(_within(bounds.WARMUP_RATIO), "Share of the steps; 0.03 by default."),
    "weight_decay": _auto(_within(bounds.WEIGHT_DECAY), "0 by default."),
    "max_grad_norm": _auto(_within(bounds.MAX_GRAD_NORM), "1 by default."),
    "lr_scheduler_type": _auto({"enum": ["linear", "cosine", "constant"]}, "linear by default."),
    "context_length": _auto(
        {"type": "integer", "minimum": 1}, "In tokens; the base model's by default. Longer is cut."
    ),
    "packing": _auto({"type": "boolean"}, "Several examples in one row; never changes the result. true by default."),
    "max_steps": _auto({"type": "integer", "minimum": 1}, "Stop after so many optimizer steps."),
    "eval_steps": _auto(
        {"type": "integer", "minimum": 1},
        "Optimizer steps between validations; at the end of each epoch by default. Needs a validation_file.",
    ),
    "early_stopping": EARLY_STOPPING,
    "promote_best": PROMOTE_BEST,
    "load_best_model_at_end": PROMOTE_BEST,
}
DPO_KNOBS: dict[str, JsonSchema] = {
    "beta": _auto(
        _within(bounds.BETA),
        "Of the method dpo alone: how dear it is to move away from the base model; 0.1 by default.",
    ),
}


def _hyperparameters(training: dict[str, JsonSchema]) -> JsonSchema:
    properties = {
        **training,
        **{alias: LORA_KNOBS[name] for alias, name in LORA_ALIASES.items()},
        "lora": LORA,
        "quantization": QUANTIZATION,
        "load_in_4bit": {"type": "boolean", "description": "false means `quantization: null`."},
    }
    return {"anyOf": [{"type": "object", "additionalProperties": False, "properties": properties}, {"type": "null"}]}


HYPERPARAMETERS = _hyperparameters(TRAINING_KNOBS)
DPO_HYPERPARAMETERS = _hyperparameters(TRAINING_KNOBS | DPO_KNOBS)
