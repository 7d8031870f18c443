"""The state and the settings of a job in plain words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any

from app.domain.error_text.json_text import counted
from app.domain.jobs.states import training_seconds
from app.web.api_client import ApiClient, ApiError, Json
from app.web.components.elements import link
from app.web.formatting import clean, count, duration, size, until

TONES = {
    "validating_files": "run",
    "queued": "wait",
    "running": "run",
    "paused": "warn",
    "succeeded": "ok",
    "failed": "bad",
    "cancelled": "wait",
}
LABELS = {
    "validating_files": "Checking files",
    "queued": "Queued",
    "running": "Training",
    "paused": "Paused",
    "succeeded": "Succeeded",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
PHASES = {
    "loading": "Loading the model",
    "training": "Training",
    "publishing": "Saving the adapter",
    "waiting_for_storage": "Waiting for disk space",
}
ENGINES = {
    "transformers": "PEFT",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama_cpp": "llama.cpp",
    "ollama": "Ollama",
}
TARGET_KINDS = ENGINES | {"directory": "directory", "s3": "S3 bucket", "huggingface": "Hugging Face Hub"}
UNITS = {  # of settings
    "n_epochs": "epochs",
    "batch_size": "examples",
    "context_length": "tokens",
    "eval_steps": "steps",
    "max_steps": "steps",
}
PROGRESS = "The tab Evaluation has its progress."
EVALUATIONS = {  # by the status of an evaluation without a headline
    "requested": (
        "The evaluation follows the training",
        "Then base model and adapter answer the held-out rows.",
    ),
    "queued": ("The evaluation is queued", PROGRESS),
    "running": ("The evaluation is running", PROGRESS),
    "succeeded": ("The evaluation has no scores", "It had no grader. The tab Evaluation has the answers."),
    "failed": ("The evaluation failed", "The tab Evaluation has the cause."),
    "cancelled": ("The evaluation was cancelled", "The tab Evaluation has the button for a new one."),
}
UNFINISHED = ("validating_files", "queued", "running", "paused")


def label(job: Json) -> str:
    if job["pause_requested"]:
        return "Pausing"
    if job["status"] in ("running", "queued", "validating_files") and job["phase"] in PHASES:
        return PHASES[job["phase"]]
    return LABELS[job["status"]]


def status(job: Json) -> Json:
    """The state as a cell of a table."""
    return {"text": label(job), "tone": TONES[job["status"]]}


def name(job: Json) -> str:
    """The suffix, or the short id of a job without one."""
    return clean(job["user_provided_suffix"], 80) or short_id(job["id"])


def job_cell(job: Json) -> Json:
    """The name as a cell of a table."""
    return {"text": name(job), "href": f"/jobs/{job['id']}", "sub": short_id(job["id"])}


def short_id(job_id: str) -> str:
    return job_id[:14]


def distinct_files(files: Iterable[Json], kept: Collection[str | None] = ()) -> list[Json]:
    """Files of equal content once, with their number as `copies`: the first one (the newest), or one whose id is in
    `kept`. One whose other rows are a held-out file does not stand for one without.
    """
    equal: dict[tuple[str, bool], list[Json]] = {}
    for file in files:
        equal.setdefault((file["sha256"], "held_out_file_id" in file), []).append(file)
    shown = (next((one for one in same if one["id"] in kept), same[0]) for same in equal.values())
    return [one | {"copies": len(same)} for one, same in zip(shown, equal.values(), strict=True)]


def copies_text(file: Json) -> str:
    return f", {file['copies']} equal files" if file["copies"] > 1 else ""


def file_options(files: Iterable[Json], kept: Collection[str | None] = ()) -> dict[str, str]:
    """The texts of distinct files in a select, by id."""
    return {
        file["id"]: f"{clean(file['filename'], 60)} ({size(file['bytes'])}{copies_text(file)})"
        for file in distinct_files(files, kept)
    }


async def file_names(api: ApiClient, file_ids: Iterable[str]) -> dict[str, str]:
    """The names of files by id, each with the short id: two files may have one name."""

    async def file_name(file_id: str) -> str:
        try:
            file = await api.get(f"files/{file_id}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return f"{file_id} (deleted)"
        return f"{clean(file['filename'], 60)} ({short_id(file_id)})"

    ids = list(file_ids)
    return dict(zip(ids, await asyncio.gather(*map(file_name, ids)), strict=True))


async def evaluation_text(api: ApiClient, request: Json) -> str:
    """The evaluation of a request: its rows, its graders, and what else it states."""
    (file,) = (await file_names(api, [request["file"]])).values()
    graders = ", ".join(f"{one['name']} ({one['type'].replace('_', ' ')})" for one in request.get("graders") or ())
    rest = {name: value for name, value in request.items() if name not in ("file", "graders") and value is not None}
    stated = [f"{name.replace('_', ' ')}: {setting_text(value)}" for name, value in rest.items()]
    return "; ".join([f"Held-out rows: {file}", f"graders: {graders or 'none'}", *stated])


def link_files(job: Json) -> None:
    """Add links to the datasets of a job."""
    link("Training file", f"/datasets/{job['training_file']}")
    if job["validation_file"]:
        link("Validation file", f"/datasets/{job['validation_file']}")


def fraction_done(job: Json) -> float | None:
    if job["status"] == "succeeded":
        return 1.0
    step, total = job["trained_steps"], job["total_steps"]
    return min(1.0, step / total) if step is not None and total else None


def steps(job: Json) -> str:
    if job["total_steps"] is None:
        return "–"
    return f"{count(job['trained_steps'] or 0)} of {counted(job['total_steps'], 'step')}"


def remaining_seconds(job: Json) -> float | None:
    """None once the estimate has passed: the time that remains is unknown then."""
    if job["status"] != "running" or job["estimated_finish"] is None:
        return None
    seconds = float(job["estimated_finish"] - time.time())
    return seconds if seconds > 0 else None


def reason(job: Json) -> str:
    """What a queued job waits for in the queue."""
    return job["waiting_for"] or ("disk space" if job["phase"] == "waiting_for_storage" else "its turn")


def waiting(job: Json) -> str:
    """What a queued job waits for."""
    if job["phase"] == "waiting_for_storage":
        return "Waits for disk space; it is retried automatically."
    why, position = job["waiting_for"], job["queue_position"]
    if position is None:
        return why or "Waits for a worker."
    text = "Next in the queue" if position == 1 else f"Position {position} in the queue"
    if why:
        return f"{text}. {why}"
    return f"{text}, starts {until(job['expected_start'])}." if job["expected_start"] else f"{text}."


def failure(job: Json) -> str | None:
    """Why a job failed, in a few words."""
    error = job["error"]
    return error["code"].replace("_", " ") if error else None


def result(job: Json) -> Json:
    """The result of the newest evaluation as a cell of a table, or else its state."""
    evaluation = job["evaluation"]
    if evaluation is None:
        return {"text": "–"}
    if not evaluation["headline"]:
        return {"text": evaluation["status"]}
    text, _, rest = evaluation["headline"]["brief"].partition(", ")
    return {"text": text, "sub": rest, "title": evaluation["headline"]["text"]}


def remedy(error: Json) -> str | None:
    """What to do about the error of a failed job, in terms of the dashboard."""
    if not error["remedy"]:
        return None
    parameter = error["param"] or "the parameter"
    text = error["remedy"].replace("the parameter in `param`", parameter)
    plan = "the plan in the form of a new job"
    return str(text.replace("`POST /v1/fine_tuning/jobs/plan`", plan).replace("`", ""))


def sentence(job: Json) -> str:
    """What is happening with the job, in one or two sentences."""
    match job["status"]:
        case "validating_files":
            if job["phase"] == "waiting_for_storage":
                return "The check of the files waits for disk space; it is repeated by itself."
            return "The files are being checked: format, roles, tokens. This usually takes seconds."
        case "queued":
            return f"{_before_the_queue(job)} {waiting(job)}"
        case "running":
            return _running_sentence(job)
        case "paused":
            if not job["trained_steps"]:
                return "Paused before its first step. Resume it to start the training."
            return f"Paused at step {count(job['trained_steps'])}. Resume it to continue from there."
        case "succeeded":
            tokens = f" on {count(job['trained_tokens'])} tokens" if job["trained_tokens"] else ""
            adapter = f" The adapter has {size(job['adapter']['bytes'])}." if job["adapter"] else ""
            spent = f" in {duration(training_seconds(job))}" if job["started_at"] else ""
            return f"Trained {counted(job['trained_steps'] or 0, 'step')}{tokens}{spent}.{adapter}"
        case "failed":
            what = "The training ended with an error" if job["started_at"] else "The job failed before its training"
            return f"{what}. The cause and the remedy are below."
        case _:
            return f"Cancelled after {counted(job['trained_steps'] or 0, 'step')}."


def _before_the_queue(job: Json) -> str:
    if not job["attempts"]:
        return "The files are valid."
    if not job["trained_steps"]:
        return "Interrupted before its first step; it starts again by itself."
    return f"Interrupted at step {count(job['trained_steps'])}; it continues by itself."


def _running_sentence(job: Json) -> str:
    if job["pause_requested"]:
        return "Pausing: the trainer finishes its current step and saves a checkpoint."
    if job["phase"] in ("loading", "publishing"):
        return f"{PHASES[job['phase']]}."
    if job["trained_steps"] is None:
        return "A worker has the job and prepares the training."
    remaining = remaining_seconds(job)
    rest = f" About {duration(remaining)} remain." if remaining is not None else ""
    return f"Training: step {count(job['trained_steps'])} of {count(job['total_steps'])}.{rest}"


def setting_text(value: Any) -> str:
    """The value of a setting in one line."""
    if value in (None, [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
