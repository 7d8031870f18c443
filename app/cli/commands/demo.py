"""`tunery demo`: one fine-tuning job, end to end, on a service of its own.

    start -> upload -> train -> download -> compare -> stop

All steps but the comparison use the HTTP API; the comparison runs here, on the downloaded adapter. The converted base
model stays in the directory, so that the next demo starts in seconds.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from app.cli.client.http import Client
from app.cli.client.references import job_path
from app.cli.client.service_discovery import ServiceAddress
from app.cli.client.transfers import upload_with_progress
from app.cli.commands.jobs.adapters import Download, download
from app.cli.commands.jobs.jobs import estimate_text
from app.cli.commands.jobs.progress import watch
from app.cli.errors import CliError
from app.cli.local_stack import first_run, up
from app.cli.local_stack.data_directory import Layout, default_data_dir
from app.cli.local_stack.machine import CannotStart, postgres_account, suggest_data_dir
from app.cli.local_stack.servers import LocalPostgres, LocalValkey
from app.cli.output.compare import compare, print_comparison, read_examples
from app.cli.output.console import duration_text, print_line, print_note, size_text
from app.cli.output.progress import is_finished

REPOSITORY = Path(__file__).resolve().parents[3]
# The demo must not change the data of another service.
REMOVED_VARIABLES = ("DATABASE_URL", "REDIS_URL", "TUNERY_ADMIN_KEY_FILE")
EPOCHS = 2  # at a rate of 1.3e-3, exact matches of 40 held-out answers: 19 after one epoch, 32 after two; "auto" is 3
TAIL_SECONDS = 0.2
WEB_URL = "http://127.0.0.1:8001"  # of the dashboard with the default ports of `tunery up`

Json = dict[str, Any]


def run(directory: Path | None, examples: Path | None = None) -> None:
    """Raises CliError or CannotStart. Stops the service in every case."""
    started_at = time.monotonic()
    example = _example_directory(examples)
    why_missing = first_run.missing_dependency()
    if why_missing is not None:
        raise CliError(f"The demo trains the bundled base model, and {why_missing}.")
    demo_directory = _demo_directory(directory)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handled as Ctrl-C, so that every `finally` runs
    with _running_service(demo_directory / "data") as client:
        job = _train(client, example)
        adapter = _download(client, job, demo_directory / "adapters" / job["id"])
        _print_step("5/5", "generating the answers of both models to held-out prompts (half a minute)")
        base = Layout(demo_directory / "data").models / first_run.BUNDLED_MODEL
        with Console().status("generating"):
            answers = compare(base, adapter.directory, read_examples(example / "heldout.jsonl"))
    print_comparison(answers)
    duration = duration_text(time.monotonic() - started_at)
    print_line(f"The adapter is in {adapter.directory}. The service is stopped. The demo took {duration}.")
    data_dir = shlex.quote(str(demo_directory / "data"))
    print_line(f"The job's page is {WEB_URL}/jobs/{job['id']} while this runs: tunery up --data-dir {data_dir}")
    print_line(f"Sign in with the key in {Layout(demo_directory / 'data').admin_key}.")


def _example_directory(requested: Path | None = None) -> Path:
    """The directory of the dataset: the requested one, else that of the repository."""
    directory = (requested or REPOSITORY / "examples" / "support-tickets").absolute()
    missing = [name for name in ("train.jsonl", "heldout.jsonl") if not (directory / name).is_file()]
    if missing:
        raise CliError(
            f"{directory} has no {' and no '.join(missing)}. Run the demo from a clone of the repository, or give the "
            "directory of its dataset with --examples."
        )
    return directory


def _demo_directory(requested: Path | None) -> Path:
    """The requested directory, or else .demo in the repository, or else a directory that PostgreSQL can use."""
    if requested is not None:
        return requested.absolute()
    default = REPOSITORY / ".demo"
    reason = _why_unusable(default / "data")
    if reason is None:
        return default
    account = postgres_account()
    fallback = (suggest_data_dir(account) if account else default_data_dir()).with_name("tunery-demo")
    print_note(f"{reason}\nThe demo uses {fallback} instead.")
    return fallback


def _why_unusable(data_dir: Path) -> str | None:
    try:
        LocalPostgres(Layout(data_dir).postgres).check_usable()
        LocalValkey(Layout(data_dir).valkey).check_usable()
        if not os.access(REPOSITORY, os.W_OK):
            return f"{REPOSITORY} is not writable."
    except CannotStart as error:
        return str(error)
    return None


@contextlib.contextmanager
def _running_service(data_dir: Path) -> Iterator[Client]:
    """Run the service on a free port while the block runs, and print its output while it starts."""
    for name in REMOVED_VARIABLES:
        os.environ.pop(name, None)
    if not data_dir.parent.exists():
        data_dir.parent.mkdir(parents=True)
        data_dir.parent.chmod(0o755)  # PostgreSQL's account must pass through, whatever the umask is
    _print_step(
        "1/5", "starting PostgreSQL, Valkey, the API and the workers (the first time the base model is converted)"
    )
    with contextlib.ExitStack() as resources:
        log = data_dir.with_name("up.log")
        with _printing_new_lines(log):
            service = resources.enter_context(up.running_in_background(data_dir, log))
        client = Client(ServiceAddress(service.base_url, service.admin_key))
        resources.callback(client.close)
        resources.callback(_print_step, "stop", "stopping the service")
        _cancel_unfinished_jobs(client)
        resources.callback(_cancel_unfinished_jobs, client)
        yield client


def _cancel_unfinished_jobs(client: Client) -> None:
    """Cancel the jobs of an interrupted demo, which would otherwise run before the new one or delay the shutdown."""
    with contextlib.suppress(CliError):
        for job in client.pages("fine_tuning/jobs", 100):
            if not is_finished(job):
                client.post(job_path(job["id"], "cancel"))


def _train(client: Client, example: Path) -> Json:
    _print_step("2/5", f"uploading {example.name}/train.jsonl and valid.jsonl to {client.address.base_url}/v1")
    files = {name: upload_with_progress(client, example / f"{name}.jsonl")["id"] for name in ("train", "valid")}
    body = {
        "model": first_run.BUNDLED_MODEL,
        "training_file": files["train"],
        "validation_file": files["valid"],
        "suffix": "demo",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS}}},
    }
    estimate = estimate_text(client.post("fine_tuning/jobs/plan", body))
    job = client.post("fine_tuning/jobs", body)
    _print_step("3/5", f"training a QLoRA adapter on {first_run.BUNDLED_MODEL}: {job['id']}")
    job = watch(client, job["id"])
    _print_plan_accuracy(client, job, estimate)
    return job


def _print_plan_accuracy(client: Client, job: Json, estimate: str | None) -> None:
    """Print the estimated and the actual time and memory."""
    events = client.pages(job_path(job["id"], "events"), 100)
    actual = next((event["data"] for event in events if event["message"].startswith("Training finished in")), None)
    if estimate and actual:
        actual_text = f"{duration_text(actual['seconds'])} and {size_text(actual['peak_bytes'])}"
        _print_step("", f"estimated {estimate}; actual {actual_text}")


def _download(client: Client, job: Json, directory: Path) -> Download:
    adapter = download(client, job["id"], directory)
    size = size_text(adapter.source.size_bytes)
    _print_step("4/5", f"downloaded {job['fine_tuned_model']}: {size}, SHA-256 {adapter.source.sha256} verified")
    return adapter


@contextlib.contextmanager
def _printing_new_lines(log: Path) -> Iterator[None]:
    """Print the lines that are appended to the log while the block runs."""
    finished = threading.Event()
    log.touch(0o600)  # it has the admin key
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        printer = threading.Thread(target=_print_new_lines, args=(file, finished), daemon=True)
        printer.start()
        try:
            yield
        finally:
            finished.set()
            printer.join()


def _print_new_lines(file: TextIO, finished: threading.Event) -> None:
    unfinished, is_last = "", False
    while not is_last:
        is_last = finished.wait(TAIL_SECONDS)  # reads once more after the end, for the last lines
        *lines, unfinished = (unfinished + file.read()).split("\n")
        for line in lines:
            if not line.startswith("admin key"):  # a secret
                Console().print(f"      {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _print_step(number: str, text: str) -> None:
    console = Console()
    console.print(f"{number:<5}", style="bold cyan", end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
