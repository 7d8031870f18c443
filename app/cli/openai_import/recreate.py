"""A fine-tuning job at OpenAI -> the create request of the same job here, with a note on each value that changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.domain.jobs.create_job import MAX_METADATA_PAIRS, create_body
from app.domain.jobs.request_parameters import METHODS

Json = dict[str, Any]
KEPT_HYPERPARAMETERS = ("n_epochs", "batch_size", "beta")
MULTIPLIER = "learning_rate_multiplier"


class ImportOutcome(StrEnum):
    KEPT = "kept"
    REPLACED = "replaced"
    IMPOSSIBLE = "impossible"
    LATER = "later"  # a limit refused it for now


@dataclass(frozen=True)
class Note:
    """What happens to one value of the job."""

    outcome: ImportOutcome
    name: str
    text: str


@dataclass
class Recreation:
    """The create request of a job, and the notes. `files` are ids at OpenAI; the request has no files yet."""

    openai_job: str
    request: Json = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # {training_file: file-...}
    notes: list[Note] = field(default_factory=list)

    @property
    def is_possible(self) -> bool:
        missing = (ImportOutcome.IMPOSSIBLE, ImportOutcome.LATER)
        return not any(note.outcome in missing and note.name in REQUIRED for note in self.notes)

    def add(self, outcome: ImportOutcome, name: str, text: str) -> None:
        self.notes.append(Note(outcome, name, text))


REQUIRED = ("method", "model", "training_file", "validation_file")


def recreate(job: Mapping[str, Any], model: str | None) -> Recreation:
    """`job` is OpenAI's job object; `model` the base model or alias here, None if there is none."""
    made = Recreation(str(job["id"]))
    _model(made, job, model)
    _method(made, job)
    for name in ("training_file", "validation_file"):
        if job.get(name):
            made.files[name] = str(job[name])
    for name, key in (("seed", "seed"), ("suffix", "user_provided_suffix")):
        if job.get(key) is not None:
            made.request[name] = job[key]
            made.add(ImportOutcome.KEPT, name, str(job[key]))
    _metadata(made, job)
    for integration in job.get("integrations") or ():
        kind = integration.get("type", "unknown")
        text = f"{kind}: metrics are in the job's events and results file instead"
        made.add(ImportOutcome.IMPOSSIBLE, "integrations", text)
    return made


def original_model(model: str) -> str:
    """`gpt-4o-mini-2024-07-18` of `ft:gpt-4o-mini-2024-07-18:acme:support:9xYz`; of another name, the name."""
    return model.split(":")[1] if model.startswith("ft:") else model


def _model(made: Recreation, job: Mapping[str, Any], model: str | None) -> None:
    old = str(job["model"])
    if model is None:
        name = original_model(old)
        made.add(
            ImportOutcome.IMPOSSIBLE,
            "model",
            f"{old}: no base model was chosen; give --model BASE, or --model-map {name}=BASE, or let an operator set "
            f"an alias (tunery models alias {name} BASE)",
        )
        return
    made.request["model"] = model
    if model == old:
        made.add(ImportOutcome.KEPT, "model", f"{old}, an alias on this server")
        return
    text = f"{old} -> {model}"
    if old.startswith("ft:"):
        text += "; an earlier fine-tune was trained further, but OpenAI returns no weights: the base is the start"
    made.add(ImportOutcome.REPLACED, "model", text)


def _method(made: Recreation, job: Mapping[str, Any]) -> None:
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    if kind not in METHODS:
        made.add(ImportOutcome.IMPOSSIBLE, "method", f"{kind} is not offered here; supervised and dpo are")
        return
    made.add(ImportOutcome.KEPT, "method", kind)
    hyperparameters = (method.get(kind) or {}).get("hyperparameters") or job.get("hyperparameters") or {}
    given = {name: value for name, value in hyperparameters.items() if value not in (None, "auto")}
    kept = {name: given.pop(name) for name in KEPT_HYPERPARAMETERS if name in given}
    for name, value in kept.items():
        made.add(ImportOutcome.KEPT, name, str(value))
    if (multiplier := given.pop(MULTIPLIER, 1)) != 1:
        text = f"{multiplier} -> auto: it multiplies a learning rate that OpenAI does not publish"
        made.add(ImportOutcome.REPLACED, MULTIPLIER, text)
    for name, value in given.items():
        made.add(ImportOutcome.IMPOSSIBLE, name, f"{value}: there is no such hyperparameter here")
    made.request |= create_body(kept | {"method": kind})


def _metadata(made: Recreation, job: Mapping[str, Any]) -> None:
    """The job's own pairs, and where it comes from: first the id, by which a later import finds the job."""
    origin = {
        "openai_model": str(job["model"]),
        "openai_fine_tuned_model": job.get("fine_tuned_model"),
        "openai_training_file": job.get("training_file"),
        "openai_validation_file": job.get("validation_file"),
    }
    own = dict(job.get("metadata") or {})
    pairs = {"openai_job": str(job["id"])} | own | {key: str(value) for key, value in origin.items() if value}
    kept = dict(list(pairs.items())[:MAX_METADATA_PAIRS])
    made.request["metadata"] = kept
    if own:
        made.add(ImportOutcome.KEPT, "metadata", ", ".join(key for key in own if key in kept))
    if dropped := [key for key in pairs if key not in kept]:
        made.add(
            ImportOutcome.IMPOSSIBLE, "metadata", f"{', '.join(dropped)}: a job has at most {MAX_METADATA_PAIRS} pairs"
        )
