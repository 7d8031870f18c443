"""Several runs on one base: `make bench-train RUNS=4`.

For 1, 2, 4, ... runs of about 256 tokens a step each, three ways, each of them real trainer processes: all in one
process, sharing base and rows; one process after the other; all processes at once. Total tokens/s over the steps alone
and with the start, what a run is slowed down by, and the peak memory of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from app.domain.dataset import read_examples
from app.domain.jsonl import Finding
from app.domain.render import Renderer
from app.domain.spec import RunSpec, TrainerSpec
from benchmarks import workload
from benchmarks.table import DROPPED_STEPS, gigabytes, machine

ROOT = Path(__file__).resolve().parent.parent
TOKENS, WITHIN = 256, 40  # tokens of an example that is taken


@dataclass
class Told:
    """What one trainer process said: (seconds since its start, step, run) of each step; its peak memory."""

    steps: list[tuple[float, int, str]]
    seconds: float
    peak_bytes: int

    @property
    def step_seconds(self) -> float:
        """The counted steps: from the last dropped one to the last but one, which is followed by no checkpoint."""
        ends = [at for at, step, _ in self.steps if step == DROPPED_STEPS]
        last = max(step for _, step, _ in self.steps) - 1
        return max(at for at, step, _ in self.steps if step == last) - max(ends)


def main(options: argparse.Namespace) -> None:
    from benchmarks.train import convert

    with tempfile.TemporaryDirectory(prefix="tunery-runs-") as name:
        directory = Path(name)
        base = options.model or convert(directory / "base")
        data = even_rows(base, options.data, directory / "rows.jsonl")
        spec = workload.make_spec(base, data, None, options.steps, options.learning_rate, options.device, batch_size=1)
        print(f"{machine()}\n{options.steps} steps of one example of {TOKENS} +- {WITHIN} tokens for each run\n")
        print("runs   together      after each other      apart at once   gain  slowdown   peak together / one / apart")
        one = None
        for runs in (count for count in (1, 2, 4, 8) if count <= options.runs):
            one = compare(spec, runs, directory, one)


def even_rows(base: Path, data: Path, destination: Path) -> Path:
    """The examples of `data` whose length is near to TOKENS."""
    renderer = Renderer.from_directory(base)
    wanted = set()
    with data.open("rb") as file:
        for example in read_examples(file):
            if not isinstance(example, Finding):
                length = sum(len(document) for document in renderer.documents(example))
                wanted |= {example.line} if abs(length - TOKENS) <= WITHIN else set()
    lines = data.read_bytes().split(b"\n")
    destination.write_bytes(b"".join(lines[number - 1] + b"\n" for number in sorted(wanted)))
    return destination


def compare(spec: TrainerSpec, runs: int, directory: Path, one: Told | None) -> Told:
    specs = [spec.runs[0].model_copy(update={"run_id": f"run-{i}", "seed": i}) for i in range(runs)]
    together = train(spec, specs, directory / f"together-{runs}")
    singles = [train(spec, [each], directory / f"alone-{runs}-{each.run_id}") for each in specs]
    apart = at_once(spec, specs, directory / f"apart-{runs}") if runs > 1 else singles
    one = one or singles[0]
    tokens = runs * TOKENS * (len(singles[0].steps) - DROPPED_STEPS - 1)
    alone_seconds = sum(each.step_seconds for each in singles)
    apart_seconds = max(each.step_seconds for each in apart)
    start = (sum(each.seconds for each in singles), together.seconds)
    print(
        f"{runs:4}{tokens / together.step_seconds:>8,.0f} t/s {tokens / alone_seconds:>12,.0f} t/s "
        f"{tokens / apart_seconds:>15,.0f} t/s {alone_seconds / together.step_seconds:>7.2f} "
        f"{together.step_seconds / (alone_seconds / runs):>8.2f}   {gigabytes(together.peak_bytes)} / "
        f"{gigabytes(one.peak_bytes)} / {gigabytes(sum(each.peak_bytes for each in apart))}   "
        f"with start and end {start[0] / start[1]:.2f}x",
        flush=True,
    )
    return one


def at_once(spec: TrainerSpec, runs: list[RunSpec], directory: Path) -> list[Told]:
    told: list[Told] = []
    threads = [
        threading.Thread(target=lambda each=each: told.append(train(spec, [each], directory / each.run_id)))
        for each in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def train(spec: TrainerSpec, runs: list[RunSpec], directory: Path) -> Told:
    directory.mkdir(parents=True)
    (directory / "spec.json").write_text(spec.model_copy(update={"runs": tuple(runs)}).model_dump_json())
    began, steps = time.monotonic(), []
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "worker.trainer", str(directory)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log)
        for line in child.stdout:
            record = json.loads(line)
            if record["kind"] == "metric":
                steps.append((time.monotonic() - began, record["step"], record["run_id"]))
            elif record["kind"] == "failed":
                raise RuntimeError(record["message"])
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0
    return Told(steps, time.monotonic() - began, usage.ru_maxrss * 1024)
