"""Accuracy of the plan, `make bench-plan`: one job, then five similar ones, each planned before it runs.

The whole service as `tunery up` starts it, with servers of its own. Each job is planned and created over HTTP by one
and the same request; what it took is read where the worker stores it for the next plan, in the table `measurements`.
The first job is printed but not counted: it is the one that the others' plans learn from.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select

from app.cli.local_stack import first_run
from app.db.engine import Sessions, make_engine, make_sessions, transaction
from app.db.tables import Attempt, MeasurementRow
from app.domain.jobs.states import TERMINAL
from app.domain.planning.execution_plan import ExecutionPlan
from app.system.host import cpu_name
from benchmarks import published_plans
from benchmarks.plan_table import HEADER, Outcome, line, verdicts
from tests.deadline import until
from tests.up import Service, serving

HERE = Path(__file__).resolve().parent
JOBS = "/v1/fine_tuning/jobs"
SEED = 7
RETRY_TIMEOUT_SECONDS = 3600.0  # for one job, on a machine that has other work, too
READ_SECONDS = 120.0
LOOK_SECONDS = 2.0  # between two looks at a job: on two cores, looking more often slows down what is looked at


@dataclass(frozen=True)
class Recipe:
    """A job on some rows of GSM8K. Conversations of several `turns` are that many rows joined."""

    name: str
    examples: int
    batch_size: int
    n_epochs: int = 1
    turns: int = 1
    shortest: bool = False  # the shortest rows there are
    validation: int = 0  # held-out examples
    eval_steps: int | None = None

    @property
    def knobs(self) -> dict[str, Any]:
        every = {"eval_steps": self.eval_steps} if self.eval_steps else {}
        return {"n_epochs": self.n_epochs, "batch_size": self.batch_size} | every


FIRST = Recipe("first of its kind", examples=96, batch_size=8)
OTHERS = (
    Recipe("short rows", examples=120, batch_size=4, shortest=True),
    Recipe("4 turns each", examples=24, batch_size=4, turns=4),
    Recipe("1 example a step", examples=48, batch_size=1),
    Recipe("3 epochs, validated", examples=32, batch_size=16, n_epochs=3, validation=16),
    Recipe("validated every 8", examples=64, batch_size=2, validation=16, eval_steps=8),
)


def main() -> None:
    options = parse()
    if options.published:
        print("\n".join(published_plans.markdown()))
        return
    recipes = (FIRST, *OTHERS[: options.jobs])
    print(f"{cpu_name()}, {os.cpu_count()} logical CPUs, load {os.getloadavg()[0]:.1f}; predicted -> measured")
    print(HEADER, flush=True)
    with serving() as service, client_of(service) as client:
        model = offer(service, options.model) if options.model else first_run.BUNDLED_MODEL
        sessions = make_sessions(make_engine(json.loads(service.runtime.read_text())["database_url"]))
        outcomes = [try_one(client, sessions, model, recipe) for recipe in recipes]
    print()
    for text in verdicts(outcomes[1:]):
        print(text)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-plan", description=__doc__)
    parser.add_argument("--jobs", type=int, default=len(OTHERS), choices=range(1, len(OTHERS) + 1))
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    text = "print the table of docs/how-it-works/decisions/plan.md instead, without a job"
    parser.add_argument("--published", action="store_true", help=text)
    return parser.parse_args()


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=READ_SECONDS)


def offer(service: Service, directory: Path) -> str:
    service.tunery("models", "add", directory.name, str(directory.resolve()))
    return directory.name


def try_one(client: httpx2.Client, sessions: Sessions, model: str, recipe: Recipe) -> Outcome:
    """Plan, train, compare. Raises RuntimeError for a job that did not succeed."""
    request = {
        "model": model,
        "training_file": upload(client, training_rows(recipe)),
        "hyperparameters": recipe.knobs,
        "seed": SEED,
    }
    if recipe.validation:
        request["validation_file"] = upload(client, validation_rows(recipe))
    plan = sent(client.post(f"{JOBS}/plan", json=request))
    job = finished(client, sent(client.post(JOBS, json=request))["id"])
    if job["status"] != "succeeded":
        raise RuntimeError(f"{recipe.name}: {job['status']}, {job['error']}")
    outcome = compared(recipe.name, plan, job, sessions)
    print(line(outcome), flush=True)
    return outcome


def compared(name: str, plan: dict[str, Any], job: dict[str, Any], sessions: Sessions) -> Outcome:
    (device,) = plan["devices"]
    with transaction(sessions) as session:
        row = session.scalars(select(MeasurementRow).where(MeasurementRow.job_id == job["id"])).one()
        attempt = session.get_one(Attempt, (job["id"], row.attempt))
        assert attempt.ended_at is not None, "the job has ended"
        assert row.seconds is not None, "it ran in another layout than the one that was planned"
        return Outcome(
            name=name,
            planned_tokens=plan["trained_tokens"],
            tokens=job["trained_tokens"],
            planned_steps=plan["total_steps"],
            steps=job["progress"]["step"],
            mode=ExecutionPlan.model_validate(device["mode"]),
            planned_peak_bytes=device["memory"]["peak"],
            peak_bytes=row.peak_bytes,
            planned_seconds=device["seconds"],
            seconds=row.seconds,
            attempt_seconds=(attempt.ended_at - attempt.started_at).total_seconds(),
        )


def upload(client: httpx2.Client, rows: bytes) -> str:
    files = {"file": ("rows.jsonl", rows, "application/jsonl")}
    return str(sent(client.post("/v1/files", data={"purpose": "fine-tune"}, files=files))["id"])


def finished(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    def has_ended() -> bool:
        return sent(client.get(f"{JOBS}/{job_id}"))["status"] in TERMINAL

    until(has_ended, f"the end of {job_id}", RETRY_TIMEOUT_SECONDS, LOOK_SECONDS)
    return sent(client.get(f"{JOBS}/{job_id}"))


def sent(answer: httpx2.Response) -> dict[str, Any]:
    """Raises RuntimeError with the API's message if it rejects the request."""
    if not answer.is_success:
        raise RuntimeError(f"{answer.status_code}: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


def training_rows(recipe: Recipe) -> bytes:
    lines = (HERE / "gsm8k-512.jsonl").read_bytes().splitlines()
    if recipe.shortest:
        lines.sort(key=len)
    return joined(lines[: recipe.examples * recipe.turns], recipe.turns)


def validation_rows(recipe: Recipe) -> bytes:
    return joined((HERE / "gsm8k-valid-64.jsonl").read_bytes().splitlines()[: recipe.validation], 1)


def joined(lines: Sequence[bytes], turns: int) -> bytes:
    """Join every `turns` conversations into one."""
    rows = [json.loads(line)["messages"] for line in lines]
    together = [list(chain.from_iterable(rows[at : at + turns])) for at in range(0, len(rows), turns)]
    return b"".join(json.dumps({"messages": messages}).encode() + b"\n" for messages in together)


if __name__ == "__main__":
    main()
