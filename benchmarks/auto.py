"""Compare "auto" with a grid of learning rates at equal tokens, on four small tasks: `make bench-auto`.

Everything but the learning rate is what "auto" resolves to, on both sides. The rates of a task and seed are trained one
after the other. Quality is that of the saved adapters on held-out rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from app.cli.local_stack.first_run import BUNDLED_LEARNING_RATE, gguf_file
from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.events import Done, Failed, Metric, Record
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import BaseSpec, JobSpec, QuantizationSpec, RunSpec, TrainerSpec
from app.domain.jobs.states import Reason
from app.system import model_files
from app.system.artifact_directory import sha256_file
from app.system.tokenizer_files import load_renderer
from benchmarks.paired import Interval, accuracy_interval, loss_interval
from benchmarks.score import Score, load_adapter, score
from benchmarks.tasks import TASKS, Task, write
from worker.trainer.data.batch import TokenizedDataset, read_dataset
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.base_model import FrozenBase, open_base
from worker.trainer.runtime.device import choose_compute_dtype, choose_device, choose_threads
from worker.trainer.runtime.process import StopRequests
from worker.trainer.training.run import run

ROOT = Path(__file__).resolve().parents[1]
RATES = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)
AUTO = "auto"
TOKENS_PER_SECOND = 400  # of the trainer on two cores without AMX, for the estimate
FORWARD_SHARE = 0.4  # what scoring a token costs of what training on it does

Scores = dict[str, list[Score]]  # by arm ("auto", "0.001", ...): one for each seed; an arm that failed has fewer


@dataclass(frozen=True)
class Work:
    """A task, written down and resolved."""

    task: Task
    training_file: Path
    held_out: TokenizedDataset
    n_examples: int
    tokens: int  # of one epoch of the training file
    job: JobSpec  # what "auto" resolves to

    @property
    def trained_tokens(self) -> int:
        return self.tokens * self.job.hyperparameters.n_epochs


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="tunery-auto-") as temporary:
        directory = Path(temporary)
        base = options.model or convert(directory / "base")
        entry = model_files.read_catalog_entry(base, None if options.model else BUNDLED_LEARNING_RATE)
        works = [prepare(directory, base, entry, TASKS[name], options) for name in options.tasks]
        estimate(works, options)
        # one base for scoring; each TrainerSpec opens its own, as it does under a worker
        kernels = choose_kernels(choose_device(options.device))
        scorer = open_base(base_spec(base), works[0].job.quantization, _dtype(options), kernels)
        verdicts = [compare(work, train(work, directory, base, entry, scorer, options), options) for work in works]
    worse = sum(verdicts)
    print(f'\nOn {worse} of {len(verdicts)} tasks "auto" is below the grid\'s best by more than the 95 % interval.')
    return 1 if any(verdicts) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-auto", description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="the grid, absolute")
    parser.add_argument("--rows", type=int, help="at most so many training rows a task")
    parser.add_argument("--held-out", type=int, help="at most so many held-out rows a task")
    parser.add_argument("--epochs", type=int, help="instead of what auto says, on both sides")
    parser.add_argument("--batch-size", type=int, help="instead of what auto says, on both sides")
    parser.add_argument("--rank", type=int, help="instead of what auto says, on both sides")
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: physical cores)")
    return parser.parse_args(arguments)


def convert(destination: Path) -> Path:
    command = [sys.executable, "-m", "worker.trainer.gguf.to_safetensors", str(gguf_file()), destination]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return destination


def prepare(directory: Path, base: Path, entry: CatalogEntry, task: Task, options: argparse.Namespace) -> Work:
    pairs = task.training_rows(options.rows)
    training_file = write(directory / f"{task.name}.jsonl", task, pairs)
    held_out_file = write(directory / f"{task.name}-held-out.jsonl", task, task.held_out_rows(options.held_out))
    renderer, job = load_renderer(base), job_spec(base, entry, len(pairs), options)
    dataset = read_dataset(renderer, training_file, job.data_parameters, Reason.INVALID_TRAINING_FILE, _silent)
    held_out = read_dataset(renderer, held_out_file, job.data_parameters, Reason.INVALID_VALIDATION_FILE, _silent)
    return Work(task, training_file, held_out, len(pairs), dataset.tokens, job)


def job_spec(
    base: Path, entry: CatalogEntry, n_examples: int, options: argparse.Namespace, rate: float | None = None
) -> JobSpec:
    """The spec that the API would store for a request with only these settings; the seed is set for each run."""
    hyperparameters = {"n_epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": rate}
    return resolve(
        {"seed": 0, "hyperparameters": hyperparameters, "lora": {"r": options.rank}}, base.name, entry, n_examples
    )


def estimate(works: Sequence[Work], options: argparse.Namespace) -> None:
    runs = len(options.seeds) * (len(options.rates) + 1)
    print(f"{len(works) * runs} runs: {len(works)} tasks, seeds {options.seeds}, rates {', '.join(arms(options))}")
    cost = 0.0
    for work in works:
        knobs = work.job.hyperparameters
        cost += runs * (work.trained_tokens + FORWARD_SHARE * work.held_out.tokens)
        print(
            f"  {work.task.name:15}{work.n_examples:>5} rows, {len(work.held_out)} held out; {knobs.n_epochs} epochs, "
            f"batch size {knobs.batch_size}, auto's rate {knobs.learning_rate:.2g}; {work.trained_tokens:,} tokens"
        )
    minutes = cost / TOKENS_PER_SECOND / 60
    print(f"About {minutes:.0f} minutes at {TOKENS_PER_SECOND} tokens/s.\n", flush=True)


def arms(options: argparse.Namespace) -> list[str]:
    return [AUTO, *(f"{rate:g}" for rate in options.rates)]


def train(
    work: Work, directory: Path, base: Path, entry: CatalogEntry, scorer: FrozenBase, options: argparse.Namespace
) -> Scores:
    scores: Scores = {arm: [] for arm in arms(options)}
    for seed in options.seeds:
        workdir = directory / f"{work.task.name}-{seed}"
        runs = [run_spec(work, arm, seed, base, entry, options) for arm in arms(options)]
        for each, adapter in trained(workdir, base, runs, work.job.quantization, options):
            scores[each.run_id].append(score(scorer, load_adapter(scorer, each, workdir / adapter), work.held_out))
    return scores


def run_spec(work: Work, arm: str, seed: int, base: Path, entry: CatalogEntry, options: argparse.Namespace) -> RunSpec:
    job = job_spec(base, entry, work.n_examples, options, None if arm == AUTO else float(arm))
    return RunSpec(
        run_id=arm,
        lora=job.lora,
        hyperparameters=job.hyperparameters,
        seed=seed,
        training_file=work.training_file,
        training_file_sha256=sha256_file(work.training_file),
    )


def trained(
    workdir: Path,
    base: Path,
    runs: Sequence[RunSpec],
    quantization: QuantizationSpec | None,
    options: argparse.Namespace,
) -> Iterator[tuple[RunSpec, str]]:
    """Train the runs in sequence; yield each finished one with its adapter's directory below `workdir`."""
    workdir.mkdir()
    progress = Progress(workdir.name)
    for each in runs:
        spec = TrainerSpec(
            base=base_spec(base),
            quantization=quantization,
            runs=(each,),
            device=options.device,
            threads=_threads(options),
        )
        run(spec, workdir, progress, StopRequests(each.run_id))
        if each.run_id in progress.adapters:
            yield each, progress.adapters[each.run_id]


class Progress:
    """Receives the trainer's records: prints a line every 50 steps and stores the adapters' directories."""

    def __init__(self, name: str) -> None:
        self.adapters: dict[str, str] = {}
        self._name, self._began = name, time.monotonic()

    def __call__(self, record: Record) -> None:
        if isinstance(record, Done):
            self.adapters[record.run_id] = record.directory
        elif isinstance(record, Failed):
            print(f"  {self._name} {record.run_id}: {record.message}", flush=True)
        elif isinstance(record, Metric) and record.run_id == AUTO and record.step % 50 == 0:
            seconds = time.monotonic() - self._began
            print(f"  {self._name}: step {record.step} of {record.total_steps}, {seconds:.0f} s", flush=True)


def compare(work: Work, scores: Scores, options: argparse.Namespace) -> bool:
    """Print one task's table. Returns whether auto is below the grid's best beyond the interval."""
    complete_scores = {arm: runs for arm, runs in scores.items() if len(runs) == len(options.seeds)}
    print(f"\n{work.task.name}: {work.n_examples} rows, {work.trained_tokens:,} tokens, {len(options.seeds)} seeds")
    for arm in scores:
        quality = _quality(complete_scores[arm]) if arm in complete_scores else "failed"
        print(f"  {arm:>8} ({rate_of(work, arm):.2g})  {quality}")
    if AUTO not in complete_scores or len(complete_scores) == 1:
        return AUTO not in complete_scores
    grid = {arm: runs for arm, runs in complete_scores.items() if arm != AUTO}
    by_loss = best(grid, by_loss=True)
    interval = loss_interval(complete_scores[AUTO], grid[by_loss])
    print(f"  auto - {by_loss}, loss (more is better for auto): {_format(interval)}")
    if work.task.exact:
        by_accuracy = best(grid, by_loss=False)
        interval = accuracy_interval(complete_scores[AUTO], grid[by_accuracy])
        print(f"  auto - {by_accuracy}, exact: {_format(interval)}")
    print(f"  auto is {'BELOW' if interval.is_worse else 'not below'} the grid's best", flush=True)
    return interval.is_worse


def rate_of(work: Work, arm: str) -> float:
    return work.job.hyperparameters.learning_rate if arm == AUTO else float(arm)


def best(grid: Scores, *, by_loss: bool) -> str:
    return min(grid, key=lambda arm: _mean_loss(grid[arm]) if by_loss else -_mean_accuracy(grid[arm]))


def base_spec(base: Path) -> BaseSpec:
    return BaseSpec(name=base.name, directory=base, manifest_sha256=model_files.hash_directory(base)[1])


def _mean_loss(scores: Sequence[Score]) -> float:
    return sum(each.loss for each in scores) / len(scores)


def _mean_accuracy(scores: Sequence[Score]) -> float:
    return sum(each.accuracy for each in scores) / len(scores)


def _quality(scores: Sequence[Score]) -> str:
    seeds = ", ".join(f"{each.accuracy:.3f}" for each in scores)
    return f"exact {_mean_accuracy(scores):.3f} ({seeds})  loss {_mean_loss(scores):.4f}"


def _format(interval: Interval) -> str:
    return f"{interval.difference:+.4f}, 95 % interval {interval.low:+.4f} to {interval.high:+.4f}"


def _dtype(options: argparse.Namespace) -> torch.dtype:
    return choose_compute_dtype(QuantizationSpec(), choose_device(options.device))


def _threads(options: argparse.Namespace) -> int:
    return options.threads or choose_threads()


def _silent(_doing: str) -> None:
    """Ignored: no watchdog runs here."""


if __name__ == "__main__":
    raise SystemExit(main())
