"""A fine-tuning job at OpenAI -> the create request of the same job here, with a note on each value that changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.cli.output.console import print_json_line, print_line
from app.domain.jobs.create_job import MAX_METADATA_PAIRS, create_body
from app.domain.jobs.integrations import WandbSettings
from app.domain.methods import METHODS

Json = dict[str, Any]
KEPT, REPLACED, IMPOSSIBLE = "kept", "replaced", "impossible"
LATER = "later"  # a limit refused it for now
REQUIRED = ("method", "model", "training_file", "validation_file")
KEPT_HYPERPARAMETERS = ("n_epochs", "batch_size", "beta")
MULTIPLIER = "learning_rate_multiplier"


@dataclass
class Recreation:
    """The create request of a job, and what happens to each value. `files` are ids at OpenAI; the request has none."""

    openai_job: str
    title: str
    request: Json = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # {training_file: file-...}
    notes: list[dict[str, str]] = field(default_factory=list)
    job: Json | None = None  # the one that was created
    is_possible: bool = True

    def add(self, outcome: str, name: str, text: str) -> None:
        """Note what happens to a value, or a fact of the plan or the job, which has no name."""
        self.notes.append({"outcome": outcome, "name": name, "text": text})
        if outcome in (IMPOSSIBLE, LATER) and name in REQUIRED:
            self.is_possible = False

    def print(self, as_json: bool) -> None:
        if as_json:
            print_json_line({"openai_job": self.openai_job, "job": self.job, "notes": self.notes})
            return
        print_line(f"{self.openai_job} ({self.title})")
        for note in self.notes:
            name = f"{note['name']}: " if note["name"] else ""
            print_line(f"  {note['outcome']:<10}  {name}{note['text']}")


def recreate(job: Mapping[str, Any], model: str | None) -> Recreation:
    """`job` is OpenAI's job object; `model` the base model or alias here, None if there is none."""
    made = Recreation(str(job["id"]), str(job.get("fine_tuned_model") or job["status"]))
    _model(made, str(job["model"]), model)
    _method(made, job)
    made.files = {name: str(job[name]) for name in ("training_file", "validation_file") if job.get(name)}
    for name, value in (("seed", job.get("seed")), ("suffix", job.get("user_provided_suffix"))):
        if value is not None:
            made.request[name] = value
            made.add(KEPT, name, str(value))
    _metadata(made, job)
    for integration in job.get("integrations") or ():
        kind = integration.get("type", "unknown")
        if kind != "wandb":
            made.add(IMPOSSIBLE, "integrations", f"{kind}: metrics are in the job's events and results file instead")
            continue
        asked = {name: value for name, value in integration["wandb"].items() if name in WandbSettings.model_fields}
        made.request.setdefault("integrations", []).append({"type": kind, "wandb": asked})
        made.add(KEPT, "integrations", f"{kind}: {asked.get('project')}")
    return made


def original_model(model: str) -> str:
    """`gpt-4o-mini-2024-07-18` of `ft:gpt-4o-mini-2024-07-18:acme:support:9xYz`; of another name, the name."""
    return model.split(":")[1] if model.startswith("ft:") else model


def _model(made: Recreation, old: str, model: str | None) -> None:
    if model is None:
        name = original_model(old)
        text = f"{old}: no base model was chosen; give --model BASE, or --model-map {name}=BASE, or let an operator "
        made.add(IMPOSSIBLE, "model", f"{text}set an alias (tunery models alias {name} BASE)")
        return
    made.request["model"] = model
    if model == old:
        made.add(KEPT, "model", f"{old}, an alias on this server")
        return
    text = f"{old} -> {model}"
    if old.startswith("ft:") and not model.startswith("ft:"):
        text += "; an earlier fine-tune was trained further, but OpenAI returns no weights: the base is the start, or "
        text += f"its adapter here, with --model-map {old}=ft:..."
    made.add(REPLACED, "model", text)


def _method(made: Recreation, job: Mapping[str, Any]) -> None:
    method = job.get("method") or {}
    kind = method.get("type") or "supervised"
    if kind not in METHODS:
        made.add(IMPOSSIBLE, "method", f"{kind} is not offered here; {', '.join(METHODS)} are")
        return
    made.add(KEPT, "method", kind)
    hyperparameters = (method.get(kind) or {}).get("hyperparameters") or job.get("hyperparameters") or {}
    given = {name: value for name, value in hyperparameters.items() if value not in (None, "auto")}
    kept = {name: given.pop(name) for name in KEPT_HYPERPARAMETERS if name in given}
    for name, value in kept.items():
        made.add(KEPT, name, str(value))
    if (multiplier := given.pop(MULTIPLIER, 1)) != 1:
        text = f"{multiplier} -> auto: it multiplies a learning rate that OpenAI does not publish"
        made.add(REPLACED, MULTIPLIER, text)
    for name, value in given.items():
        made.add(IMPOSSIBLE, name, f"{value}: there is no such hyperparameter here")
    made.request |= create_body(kept | {"method": kind})


def _metadata(made: Recreation, job: Mapping[str, Any]) -> None:
    """The job's own pairs, and where it comes from: first the id, by which a later import finds the job."""
    own = dict(job.get("metadata") or {})
    keys = ("model", "fine_tuned_model", "training_file", "validation_file")
    origin = {f"openai_{key}": str(job[key]) for key in keys if job.get(key)}
    pairs = list(({"openai_job": str(job["id"])} | own | origin).items())
    made.request["metadata"] = kept = dict(pairs[:MAX_METADATA_PAIRS])
    if own:
        made.add(KEPT, "metadata", ", ".join(key for key in own if key in kept))
    if dropped := [key for key, _ in pairs[MAX_METADATA_PAIRS:]]:
        text = f"{', '.join(dropped)}: a job has at most {MAX_METADATA_PAIRS} pairs"
        made.add(IMPOSSIBLE, "metadata", text)
