"""What Tunery adds to OpenAI's Python client: bodies for `extra_body`, plans, progress, metrics and adapters.

Every function sends its requests through `client`, by default `openai.OpenAI()`, which reads OPENAI_BASE_URL (with
/v1) and OPENAI_API_KEY. A `job` is a job object or its id. Errors of requests are those of the official client.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, Unpack, cast

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.fine_tuning import FineTuningJob

from tunery.bodies import Evaluation, KtoHyperparameters, Lora, Quantization

__all__ = [
    "compare",
    "download",
    "evaluation",
    "kto",
    "load",
    "lora",
    "metrics",
    "plan",
    "plot",
    "quantization",
    "wait",
]

Job: TypeAlias = FineTuningJob | str
Body: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | Iterable[ChatCompletionMessageParam]

ENDED = ("succeeded", "failed", "cancelled")
BAR_WIDTH = 24
PAUSE_SECONDS = 1.0  # a running job changes with every step
WAIT_RETRIES = 10  # about a minute: a server that restarts does not end a wait of hours


def lora(**fields: Unpack[Lora]) -> Body:
    """Return the part of `extra_body` that describes the adapter. Parts are joined with `|`."""
    return {"lora": fields}


def quantization(**fields: Unpack[Quantization]) -> Body:
    """Return the part of `extra_body` that describes how the frozen base model is held.

    `{"quantization": None}` instead of this part trains 16-bit LoRA.
    """
    return {"quantization": fields}


def evaluation(**fields: Unpack[Evaluation]) -> Body:
    """Return the part of `extra_body` that evaluates the result on held-out rows after the training."""
    return {"evaluation": fields}


def kto(**hyperparameters: Unpack[KtoHyperparameters]) -> Body:
    """Return the part of `extra_body` that selects the method KTO, which the official client's types lack."""
    return {"method": {"type": "kto", "kto": {"hyperparameters": hyperparameters}}}


def plan(*, client: OpenAI | None = None, extra_body: Mapping[str, Any] | None = None, **arguments: Any) -> Body:
    """Return tokens, steps, memory and time of a job, with the arguments of `client.fine_tuning.jobs.create`.

    It creates nothing. `verdict` is "fits", "no_device_fits" or "no_worker".
    """
    body = {**arguments, **(extra_body or {})}
    return cast(Body, (client or OpenAI()).post("/fine_tuning/jobs/plan", body=body, cast_to=object))


def wait(job: Job, *, client: OpenAI | None = None, show: bool = True) -> FineTuningJob:
    """Wait until the job has ended and return it: succeeded, failed or cancelled. A paused job has not ended.

    With `show` the progress is a bar in a terminal or a notebook; elsewhere each new status is a line. Ctrl-C ends the
    wait and not the job.
    """
    jobs = (client or OpenAI()).with_options(max_retries=WAIT_RETRIES).fine_tuning.jobs
    with _display() if show else contextlib.nullcontext(lambda _: None) as update:
        current = jobs.retrieve(_id(job))
        while current.status not in ENDED:
            update(current)
            time.sleep(PAUSE_SECONDS)
            current = jobs.retrieve(current.id, extra_query={"wait": 30})
        update(current)
    return current


def metrics(job: Job, *, client: OpenAI | None = None) -> Any:
    """Return the metrics of every step, oldest first: a pandas DataFrame where pandas is installed, else a list of
    dicts."""
    return _table(_get(client or OpenAI(), job, "metrics")["data"])


def plot(job: Job, *, client: OpenAI | None = None) -> Any:
    """Draw the training loss and the validation losses by step, and return matplotlib's axes.

    Raises ImportError without matplotlib.
    """
    axes = importlib.import_module("matplotlib.pyplot").subplots()[1]
    rows = _get(client or OpenAI(), job, "metrics")["data"]
    for name, style in (("train_loss", "-"), ("valid_loss", "."), ("full_valid_loss", "o-")):
        if points := [(row["step"], row[name]) for row in rows if row.get(name) is not None]:
            axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set(title=_id(job), xlabel="step", ylabel="loss")
    axes.legend()
    return axes


def compare(job: Job, prompts: Sequence[Prompt], *, client: OpenAI | None = None, **options: Any) -> Any:
    """Return the answers of the base model and of the adapter to each prompt, a text or a list of messages: rows with
    `prompt`, `base` and `adapter`, as a pandas DataFrame where pandas is installed.

    `options` are those of `client.chat.completions.create`; the temperature is 0 by default. Raises ValueError if the
    job has no result.
    """
    client = client or OpenAI()
    current = client.fine_tuning.jobs.retrieve(_id(job))
    if current.fine_tuned_model is None:
        raise ValueError(f"{current.id} is {current.status} and has no result to compare with its base model")
    template = (current.model_extra or {}).get("chat_template_kwargs")
    arguments = {"temperature": 0, "extra_body": {"chat_template_kwargs": template} if template else None, **options}
    answers = {"base": list[str | None](), "adapter": list[str | None]()}
    # All of one model before those of the other: a worker that answers may have to load the base in another precision.
    for texts, model in zip(answers.values(), (current.model, current.fine_tuned_model), strict=True):
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            answer = client.chat.completions.create(model=model, messages=messages, **arguments)  # type: ignore[arg-type]
            texts.append(answer.choices[0].message.content)
    rows = zip(prompts, answers["base"], answers["adapter"], strict=True)
    return _table([{"prompt": prompt, "base": base, "adapter": adapter} for prompt, base, adapter in rows])


def download(job: Job, directory: str | Path, *, client: OpenAI | None = None) -> Path:
    """Download the adapter in PEFT's format into `directory`, and return it.

    A file appears under its name when its SHA-256 is that of the service. Raises ValueError if it is another.
    """
    client, target = client or OpenAI(), Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for file in _get(client, job, "adapter")["files"]:
        path, digest = target / Path(file["filename"]).name, hashlib.sha256()
        partial = path.with_name(f"{path.name}.part")
        with client.files.with_streaming_response.content(file["id"]) as response, partial.open("wb") as stream:
            for chunk in response.iter_bytes():
                digest.update(chunk)
                stream.write(chunk)
        if digest.hexdigest() != file["sha256"]:
            partial.unlink()
            raise ValueError(
                f"{path.name} has the SHA-256 {digest.hexdigest()} and not {file['sha256']}: download again"
            )
        partial.replace(path)
    return target


def load(job: Job, base: str | Path | None = None, *, client: OpenAI | None = None, **options: Any) -> Any:
    """Download the adapter and return it on its base model, as a `peft.PeftModel`.

    `base` is a directory or a name on Hugging Face's hub, by default the name in the adapter's configuration; `options`
    are those of transformers' `from_pretrained`. Raises ImportError without peft or transformers.
    """
    peft, transformers = importlib.import_module("peft"), importlib.import_module("transformers")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        download(job, directory, client=client)
        base = base or peft.PeftConfig.from_pretrained(directory).base_model_name_or_path
        model = transformers.AutoModelForCausalLM.from_pretrained(base, **options)
        return peft.PeftModel.from_pretrained(model, directory)


def _id(job: Job) -> str:
    return job if isinstance(job, str) else job.id


def _get(client: OpenAI, job: Job, what: str) -> Body:
    return cast(Body, client.get(f"/fine_tuning/jobs/{_id(job)}/{what}", cast_to=object))


def _table(rows: list[Body]) -> Any:
    try:
        return importlib.import_module("pandas").DataFrame(rows)
    except ImportError:
        return rows


@contextlib.contextmanager
def _display() -> Iterator[Callable[[FineTuningJob], None]]:
    """A function that shows a job: in one cell of a notebook, one line of a terminal, or one line for each status."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    shown: Any = None

    def in_notebook(job: FineTuningJob) -> None:
        nonlocal shown
        data = {"text/plain": _line(job)}
        if shown is None:
            shown = importlib.import_module("IPython.display").display(data, raw=True, display_id=True)
        else:
            shown.update(data, raw=True)

    def in_terminal(job: FineTuningJob) -> None:
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r{_line(job)[:columns]:<{columns}}", end="", file=sys.stderr, flush=True)

    def in_log(job: FineTuningJob) -> None:
        nonlocal shown
        if job.status != shown:
            print(_line(job), file=sys.stderr, flush=True)
        shown = job.status

    if hasattr(shell, "kernel"):
        yield in_notebook
    elif sys.stderr.isatty():
        try:
            yield in_terminal
        finally:
            print(file=sys.stderr)
    else:
        yield in_log


def _line(job: FineTuningJob) -> str:
    """`ftjob-... running [#####---] 45/90 steps, 70 s left`"""
    extra = job.model_extra or {}
    line = f"{job.id} {job.status}"
    if job.error and job.error.message:
        return f"{line}: {job.error.message}"
    if progress := extra.get("progress"):
        done = round(BAR_WIDTH * progress["step"] / max(progress["total_steps"], 1))
        line += f" [{'#' * done:-<{BAR_WIDTH}}] {progress['step']}/{progress['total_steps']} steps"
        return line + (f", {progress['eta_seconds']:.0f} s left" if progress.get("eta_seconds") else "")
    return line + (f", position {extra['queue_position']} in the queue" if extra.get("queue_position") else "")
