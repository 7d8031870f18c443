"""The form of a new job as data: its values, the request body that follows from them, and prefilled values.

Values and settings have the dotted names of app.domain.jobs.create_job.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pprint import pformat
from typing import Any

from app.domain.jobs.create_job import SETTINGS, CreateJob, create_body, settings_of, without
from app.domain.jobs.definitions import AUTO
from app.domain.jobs.spec import QuantizationSpec
from app.web.api_client import Json
from app.web.pages.jobs import wording

Values = dict[str, str]

MAIN = ("model", "suffix", "training_file", "validation_file", "n_epochs", "batch_size", "learning_rate", "lora.r")
MORE = (
    "method",
    "quantization",
    "context_length",
    "eval_steps",
    "lora.alpha",
    "lora.dropout",
    "lora.experts",
    "seed",
    "priority",
    "chat_template_kwargs",
    "sample_prompts",
)
VARIED = ("model", "lora.r", "learning_rate", "n_epochs")  # by the rows of the form of variants
EXAMPLES = {"chat_template_kwargs": '{"enable_thinking": false}', "more": '{"warmup_ratio": 0.05}'}  # objects, as JSON
OF_BASE_MODEL = ("lora.target_modules", "context_length")
MIN_CONTEXT_LENGTH = 128
MIN_RANK = 4
WRONG_FILES = {  # the field of the file by the code of the error, and what to do
    "invalid_training_file": ("training_file", "training file: choose the corrected file"),
    "invalid_n_examples": ("training_file", "training file: choose the corrected file"),
    "invalid_validation_file": ("validation_file", "validation file: choose the corrected file, or none"),
}
REPAIRED_ERRORS = ("out_of_memory", "non_finite_loss", "invalid_evaluation_file", *WRONG_FILES)
WITHOUT_QUANTIZATION, AS_ORIGINAL = "16", "original"
NO_FILE = "none"  # not even the held-out rows of the training file


class FieldError(Exception):
    """The value of one field is not usable: its name, and why."""


@dataclass(frozen=True)
class Prefilled:
    values: Values
    changes: list[str] = field(default_factory=list)  # what a repair changed, in words
    advice: str = ""  # what the user should change, as no repair does
    kept: Json = field(default_factory=dict)  # the settings of the original that no field of the form has


def request_body(values: Mapping[str, str], kept: Mapping[str, Any] | None = None) -> Json:
    """The body of a create call. Empty fields are left out, so that the server chooses. Raises FieldError."""
    given = {name: _value(name, text) for name in (*MAIN, *MORE, "more") if (text := values.get(name, "").strip())}
    if "training_file" not in given:
        raise FieldError("training_file", "Choose a training file.")
    rest = dict(kept or {})
    if given.get("validation_file") == NO_FILE:
        given["validation_file"] = None
        rest.setdefault("evaluation", None)
    quantization = given.pop("quantization", None)
    if quantization == WITHOUT_QUANTIZATION:
        given["quantization"] = None
    given["hyperparameters"] = given.pop("more", {})
    rest = {name: value for name, value in rest.items() if name not in given}
    if quantization != AS_ORIGINAL:
        rest = without(rest, "quantization")
    return create_body(given | rest)


def from_job(job: Json) -> Prefilled:
    """A clone: every setting of the job as it was resolved."""
    settings = settings_of(job) | {"suffix": job["user_provided_suffix"], "priority": job["priority"] or None}
    settings["evaluation"] = (job["request"] or {}).get("evaluation")  # the job has its result instead
    del settings["learning_rate_multiplier"]
    shown = {name: settings.pop(name, None) for name in (*MAIN, *MORE)}
    if any("\n" in prompt for prompt in shown["sample_prompts"]):  # the field has one a line
        settings["sample_prompts"] = shown.pop("sample_prompts")
    is_default = job["quantization"] == QuantizationSpec().model_dump()
    shown["quantization"] = WITHOUT_QUANTIZATION if job["quantization"] is None else "4" if is_default else AS_ORIGINAL
    if shown["quantization"] != AS_ORIGINAL:
        settings = without(settings, "quantization")
    own = [name for name in settings if "." in name or name in CreateJob.model_fields]
    more = {name: value for name, value in settings.items() if name not in own and value is not None}
    values = {name: _field_text(value) for name, value in shown.items()}
    values["more"] = json.dumps(more, indent=1) if more else ""
    return Prefilled(values, kept={name: settings[name] for name in own if _is_set(name, settings[name])})


def variant(values: Mapping[str, str], changed: Mapping[str, str]) -> Json:
    """What differs from the job of `values`. An emptied field is resolved anew, and so is what depends on a changed
    one: on the base model layers and context length, on the rank an alpha of twice the rank. Raises FieldError.
    """
    texts = {name: text.strip() for name, text in changed.items()}
    given = {name: _value(name, text) if text else AUTO for name, text in texts.items() if text != values[name]}
    if "model" in given:
        given |= dict.fromkeys(OF_BASE_MODEL, AUTO)
    if "lora.r" in given and values["lora.alpha"] == str(2 * int(values["lora.r"])):
        given["lora.alpha"] = AUTO
    return create_body(given, None)


def _field_text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(value)
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, bool):
        return "true" if value else ""
    return "" if value is None else str(value).removesuffix(".0")


def _is_set(name: str, value: Any) -> bool:
    """Empty values are the defaults; only an empty `deliver_to` is none."""
    if name == "deliver_to" or name.startswith("quantization."):
        return value is not None
    return bool(value) and value not in ("none", "default")


def repaired(job: Json) -> Prefilled:
    """The values of a failed job with the change that its error calls for."""
    error = job["error"] or {}
    prefilled, code = from_job(job), error.get("code")
    values, changes = prefilled.values, prefilled.changes
    if code == "out_of_memory":
        _repair_memory(values, changes)
    elif code == "non_finite_loss":
        rate = float(values["learning_rate"] or 0)
        if rate:
            values["learning_rate"] = f"{rate / 3:.3g}"
            changes.append(f"learning rate: {rate:g} → {values['learning_rate']}")
    elif code in WRONG_FILES:
        name, change = WRONG_FILES[code]
        values[name] = ""
        changes.append(change)
    elif code == "invalid_evaluation_file":
        prefilled.kept.pop("evaluation", None)
        changes.append("evaluation: left out; request it on the job's page after the training")
    if changes or not error:
        return prefilled
    return replace(prefilled, advice=" ".join(filter(None, (error["message"], wording.remedy(error)))))


def _repair_memory(values: Values, changes: list[str]) -> None:
    """Halve the context length; at its minimum, halve the rank; without quantization, use 4 bits first."""
    context, rank = int(values["context_length"] or 0), int(values["lora.r"] or 0)
    if values["quantization"] == WITHOUT_QUANTIZATION:
        values["quantization"] = "4"
        changes.append("quantization: 16 bits → 4 bits")
    elif context >= 2 * MIN_CONTEXT_LENGTH:
        values["context_length"] = str(context // 2)
        changes.append(f"context length: {context:,} → {context // 2:,} tokens (longer examples are truncated)")
    elif rank >= 2 * MIN_RANK:
        values["lora.r"], values["lora.alpha"] = str(rank // 2), ""
        changes.append(f"LoRA rank: {rank} → {rank // 2}")


def _value(name: str, text: str) -> Any:
    if name in EXAMPLES:
        return _json_object(name, text)
    kind = SETTINGS[name].kind
    if kind is list:
        return [line.strip() for line in text.split("\n") if line.strip()]
    if kind not in (int, float):
        return text == "true" if kind is bool else text
    try:
        number = kind(text)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise FieldError(name, f"{text[:40]!r} is not a {'whole ' if kind is int else ''}number.") from None
    return number


def _json_object(name: str, text: str) -> Json:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        raise FieldError(name, f"This is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise FieldError(name, f"Write an object such as {EXAMPLES[name]}.")
    return value


OPENAI_KEYS = ("model", "training_file", "validation_file", "suffix", "seed", "method", "metadata")


def curl(body: Json, url: str) -> str:
    text = shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))
    return (
        f"curl -s {url}/v1/fine_tuning/jobs \\\n"
        '  -H "Authorization: Bearer $TUNERY_API_KEY" \\\n  -H "Content-Type: application/json" \\\n'
        f"  -d {text}"
    )


def python(body: Json, url: str) -> str:
    """For the official client: what it does not know goes into `extra_body`."""
    known = {name: value for name, value in body.items() if name in OPENAI_KEYS}
    extra = {name: value for name, value in body.items() if name not in OPENAI_KEYS}
    arguments = known | ({"extra_body": extra} if extra else {})
    lines = "\n".join(f"    {name}={_indented(value)}," for name, value in arguments.items())
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key=os.environ["TUNERY_API_KEY"])\n'
        f"job = client.fine_tuning.jobs.create(\n{lines}\n)\nprint(job.id)"
    )


def command(body: Json, url: str) -> str:
    words = ["tunery jobs create", f"--base-url {shlex.quote(url)}"]
    for name, value in settings_of(body).items():
        text = value if isinstance(value, str) else json.dumps(value)
        is_option = name in CreateJob.model_fields and type(value) in (str, int)
        option = f"--{name.replace('_', '-')} " if is_option else f"--set {name}="
        words.append(f"{option}{shlex.quote(text)}")
    return " \\\n  ".join(words)


def _indented(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")
