"""`tunery demo`: the main job, end to end, on a stack of its own.

    start -> upload -> train -> download -> compare -> stop

Everything goes through the real service; only the comparison is made here, as anybody would make it with the
downloaded adapter. The converted base model stays in the directory, so the next demo starts in seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from app.cli.client.http import Client
from app.cli.client.service_discovery import Address, job_path
from app.cli.commands.adapters import Download, download
from app.cli.commands.files import send
from app.cli.commands.plans import sentence
from app.cli.commands.watch import raise_unless_succeeded, watch
from app.cli.errors import CliError
from app.cli.local_stack import background, base_model
from app.cli.local_stack.data_directory import Layout, default_data_dir
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.servers.postgres import LocalPostgres
from app.cli.local_stack.servers.unprivileged import account, reachable
from app.cli.local_stack.servers.valkey import LocalValkey
from app.cli.output.compare import compare, held_out, show
from app.cli.output.console import duration_text, print_line, print_note, size_text
from app.cli.output.progress import is_over

REPOSITORY = Path(__file__).resolve().parents[3]
NOT_FOR_A_DEMO = ("DATABASE_URL", "REDIS_URL", "TUNERY_ADMIN_KEY_FILE")  # it works on nobody's database
EPOCHS = 2  # at a rate of 1.3e-3, exactly right of 40 held-out answers: 19 after one, 32 after two; "auto" makes three
TAIL_SECONDS = 0.2

Json = dict[str, Any]


def run(directory: Path | None) -> None:
    """Raises CliError or CannotStart; whatever happens, what it started is stopped."""
    began = time.monotonic()
    example = _example()
    _refuse_incomplete()
    place = _place(directory)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a Ctrl-C: every `finally` runs
    with _stack(place / "data") as client:
        job = _train(client, example)
        adapter = _fetch(client, job, place / "adapters" / job["id"])
        _say("5/5", "asking the base model and the tuned one what neither was trained on (half a minute)")
        base = Layout(place / "data").models / base_model.NAME
        with Console().status("generating"):
            answers = compare(base, adapter.directory, held_out(example / "heldout.jsonl"))
    show(answers)
    took = duration_text(time.monotonic() - began)
    print_line(f"The adapter is in {adapter.directory}; everything is stopped again. It took {took}.")


def _example() -> Path:
    """The directory of the shipped dataset."""
    found = sorted((REPOSITORY / "examples").glob("*/train.jsonl"))
    if not found:
        raise CliError(f"{REPOSITORY / 'examples'} holds no dataset: run the demo from a clone of the repository.")
    return found[0].parent


def _place(asked: Path | None) -> Path:
    """Where the demo lives: as asked, else .demo in the clone, else somewhere PostgreSQL can work."""
    if asked is not None:
        return asked.absolute()
    preferred = REPOSITORY / ".demo"
    why = _unusable(preferred / "data")
    if why is None:
        return preferred
    lent = account()
    instead = (reachable(lent) if lent else default_data_dir()).with_name("tunery-demo")
    print_note(f"{why}\nThe demo uses {instead} instead.")
    return instead


def _unusable(data_dir: Path) -> str | None:
    try:
        LocalPostgres(Layout(data_dir).postgres).refuse_unusable()
        LocalValkey(Layout(data_dir).valkey).refuse_unusable()
        if not os.access(REPOSITORY, os.W_OK):
            return f"{REPOSITORY} can't be written to."
    except CannotStart as error:
        return str(error)
    return None


def _refuse_incomplete() -> None:
    why = base_model.missing()
    if why is not None:
        raise CliError(f"The demo trains the bundled base model, and {why}.")


@contextlib.contextmanager
def _stack(data_dir: Path) -> Iterator[Client]:
    """A whole Tunery of our own, on a free port; it says what it does while it starts."""
    _prepare_environment()
    _make(data_dir.parent)
    _say("1/5", "starting PostgreSQL, Valkey, the API and the workers (the first time the base model is converted)")
    with contextlib.ExitStack() as held:
        log = data_dir.with_name("up.log")
        with _told(log):
            service = held.enter_context(background.running(data_dir, log))
        client = Client(Address(service.base_url, service.admin_key))
        held.callback(client.close)
        held.callback(_say, "stop", "stopping what was started")
        _end_unfinished(client)
        held.callback(_end_unfinished, client)
        yield client


def _make(directory: Path) -> None:
    """Passable for PostgreSQL's account whatever the umask says; one that is there stays as it is."""
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o755)


def _prepare_environment() -> None:
    """What `tunery up` and everything below it inherit."""
    for name in NOT_FOR_A_DEMO:
        os.environ.pop(name, None)


def _end_unfinished(client: Client) -> None:
    """A killed demo's job would go on first, and an interrupted one's be saved first: nobody waits for either."""
    with contextlib.suppress(CliError):
        for job in client.pages("fine_tuning/jobs", 100):
            if not is_over(job):
                client.post(job_path(job["id"], "cancel"))


def _train(client: Client, example: Path) -> Json:
    _say("2/5", f"uploading {example.name}/train.jsonl and valid.jsonl to {client.address.base_url}/v1")
    files = {name: send(client, example / f"{name}.jsonl")["id"] for name in ("train", "valid")}
    body = {
        "model": base_model.NAME,
        "training_file": files["train"],
        "validation_file": files["valid"],
        "suffix": "demo",
        "seed": 1,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS}}},
    }
    predicted = sentence(client.post("fine_tuning/jobs/plan", body))
    job = client.post("fine_tuning/jobs", body)
    _say("3/5", f"training a QLoRA adapter on {base_model.NAME}: {job['id']}")
    job = watch(client, job["id"])
    raise_unless_succeeded(job)
    _print_plan_accuracy(client, job, predicted)
    return job


def _print_plan_accuracy(client: Client, job: Json, predicted: str | None) -> None:
    """The plan and the truth, side by side."""
    told = client.pages(job_path(job["id"], "events"), 100)
    took = next((event["data"] for event in told if event["message"].startswith("Training finished in")), None)
    if predicted and took:
        took_text = f"{duration_text(took['seconds'])} and {size_text(took['peak_bytes'])}"
        _say("", f"planned were {predicted}; it took {took_text}")


def _fetch(client: Client, job: Json, directory: Path) -> Download:
    adapter = download(client, job["id"], directory)
    size = size_text(adapter.source.size_bytes)
    _say("4/5", f"downloaded {job['fine_tuned_model']}: {size}, SHA-256 {adapter.source.sha256} verified")
    return adapter


@contextlib.contextmanager
def _told(log: Path) -> Iterator[None]:
    """Print what `tunery up` says while the block runs."""
    over = threading.Event()
    begin = log.stat().st_size if log.exists() else 0
    teller = threading.Thread(target=_tell_lines, args=(log, begin, over), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _tell_lines(log: Path, position: int, over: threading.Event) -> None:
    last = False
    while not last:
        last = over.wait(TAIL_SECONDS)  # one more look after the end: the last lines are the news
        with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace") as file:
            file.seek(position)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                position += len(line.encode())
                _tell_line(line.rstrip("\n"))


def _tell_line(line: str) -> None:
    if not line.startswith("admin key"):  # a secret, though one of a demo
        Console().print(f"      {line}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _say(number: str, text: str) -> None:
    console = Console()
    console.print(f"{number:<5}", style="bold cyan", end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
