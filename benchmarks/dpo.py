"""DPO, ORPO and KTO of Tunery and of TRL: the same base, pairs, rate, beta and batches: `make bench-dpo`.

Rows: "auto" of Tunery for one epoch, and TRL with the same numbers, from the same initial adapter, in the same order.
`--data TRAIN HELD_OUT` are preference pairs as Tunery reads them, of people for instance; by default they are made of
GSM8K answers. KTO gets both answers of each pair, as rows of their own. All adapters have one measure, Tunery's DPO
loss over the held-out pairs: the gain of a pair is by how many nats the adapter made its preferred answer more
probable, minus the same of the other one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import BaseSpec, JobSpec, RunSpec, TrainerSpec
from app.domain.planning.packing import permutation
from app.system import model_files
from app.system.artifact_directory import sha256_file
from app.system.tokenizer_files import load_renderer
from benchmarks import peers
from benchmarks.peers import Peer
from benchmarks.preferences import read_pairs, write_labelled, write_pairs
from benchmarks.score import load_adapter
from benchmarks.table import Measured
from benchmarks.train import convert, watch
from benchmarks.workload import write_start
from worker.trainer.data.batch import read_dataset
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.objective.objective import SequenceObjective
from worker.trainer.runtime.device import choose_threads
from worker.trainer.validation.evaluate import evaluate

HERE = Path(__file__).resolve().parent
SEED = 7
METHODS = ("dpo", "orpo", "kto")
MADE_PAIRS, MADE_HELD_OUT = 96, 24
JUDGED_ROW_TOKENS = 2048


@dataclass
class Result:
    name: str
    learning_rate: float = 0.0
    beta: float = 0.0
    batch_size: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    adapter: Path = Path()

    def __str__(self) -> str:
        about = f"{self.name:<12} rate {self.learning_rate:g}, beta {self.beta:g}, batch {self.batch_size}"
        losses = f"training loss {self.losses[0]:.3f} -> {sum(self.losses[-4:]) / len(self.losses[-4:]):.3f}"
        return f"{about}; {self.tokens:,} tokens, {self.seconds:.0f} s; {losses}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-dpo", description=__doc__)
    parser.add_argument("--data", nargs=2, type=Path, metavar=("TRAIN", "HELD_OUT"), help="files of preference pairs")
    parser.add_argument("--pairs", type=int, help=f"the first of the file (default: all; without --data {MADE_PAIRS})")
    parser.add_argument("--held-out", type=int, help=f"the same of the other (without --data {MADE_HELD_OUT})")
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=choose_threads())
    parser.add_argument("--method", choices=METHODS, action="append", help="default: all")
    parser.add_argument("--only", choices=["tunery", "trl"])
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the adapter and of the order, for both ({SEED})")
    parser.add_argument("--rate", type=float, help="times the learning rate of auto, for both (default: 1)", default=1)
    options = parser.parse_args()
    peers.build_trl()
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as temporary:
        directory = Path(temporary)
        base = options.model or convert(directory / "base")
        files = [directory / "pairs.jsonl", directory / "held-out.jsonl"]
        if options.data:
            for source, file, count in zip(options.data, files, (options.pairs, options.held_out), strict=True):
                read_pairs(source, file, count)
        else:
            write_pairs(HERE / "gsm8k-512.jsonl", files[0], options.pairs or MADE_PAIRS)
            write_pairs(HERE / "gsm8k-valid-64.jsonl", files[1], options.held_out or MADE_HELD_OUT)
        torch.set_num_threads(options.threads)
        for method in options.method or METHODS:
            work = directory / method
            work.mkdir()
            compare(work, method, base, files, options)


def compare(directory: Path, method: str, base: Path, files: list[Path], options: argparse.Namespace) -> None:
    pairs, held_out = files
    training_file = write_labelled(pairs, directory / "train.jsonl", SEED) if method == "kto" else pairs
    job = resolve_job(base, method, len(training_file.read_text().splitlines()), options)
    sides = {"tunery": run_tunery, "trl": run_trl}
    judge = partial(held_out_measures, base, job, held_out, options.device)
    for name, train in sides.items():
        if options.only in (None, name):
            result = train(directory, job, base, training_file, options)
            print(f"{method}: {result}; {judge(result.adapter)}", flush=True)


def resolve_job(base: Path, method: str, examples: int, options: argparse.Namespace) -> JobSpec:
    """What the request of a user resolves to: "auto", but for one epoch, as the peer has."""
    hyperparameters = {"n_epochs": 1, "learning_rate_multiplier": options.rate}
    body = {"method": {"type": method, method: {"hyperparameters": hyperparameters}}, "seed": options.seed}
    return resolve(body, base.name, model_files.read_catalog_entry(base), examples)


def run_spec(job: JobSpec, training_file: Path) -> RunSpec:
    chosen = {"method": job.method, "lora": job.lora, "hyperparameters": job.hyperparameters}
    file = {"training_file": training_file, "training_file_sha256": sha256_file(training_file)}
    return RunSpec.model_validate({"run_id": "bench", "seed": job.seed} | chosen | file)


def trainer_spec(job: JobSpec, base: Path, training_file: Path, options: argparse.Namespace) -> TrainerSpec:
    return TrainerSpec(
        base=BaseSpec(name=base.name, directory=base, manifest_sha256=model_files.hash_directory(base)[1]),
        quantization=job.quantization,
        runs=(run_spec(job, training_file),),
        device=options.device,
        threads=options.threads,
    )


def run_tunery(directory: Path, job: JobSpec, base: Path, training_file: Path, options: argparse.Namespace) -> Result:
    """Raises RuntimeError if the run fails."""
    workdir = directory / "tunery"
    workdir.mkdir()
    (workdir / "spec.json").write_text(trainer_spec(job, base, training_file, options).model_dump_json())
    chosen, began = job.hyperparameters, time.monotonic()
    result = Result("Tunery, auto", chosen.learning_rate, chosen.beta or 0.0, chosen.batch_size)
    for _, record in watch([sys.executable, "-m", "worker.trainer", str(workdir)], Measured()):
        if record["kind"] == "metric":
            result.losses.append(record["train_loss"])
            result.tokens = record["trained_tokens"]
        elif record["kind"] == "checkpoint":
            result.adapter = workdir / record["directory"]
        elif record["kind"] == "failed":
            raise RuntimeError(record["message"])
    result.seconds = time.monotonic() - began
    return result


def run_trl(directory: Path, job: JobSpec, base: Path, training_file: Path, options: argparse.Namespace) -> Result:
    """Raises RuntimeError if the run fails."""
    rows = training_file.read_text().splitlines(keepends=True)
    ordered = directory / "ordered.jsonl"
    ordered.write_text("".join(rows[number] for number in permutation(len(rows), job.seed, 0)))
    write_start(directory / "adapter-start.safetensors", trainer_spec(job, base, training_file, options))
    work = {"base": str(base), "r": job.lora.r, "alpha": job.lora.alpha, "training_file": str(ordered)}
    work |= {"method": job.method, "device": options.device, "threads": options.threads}
    (directory / "peer.json").write_text(json.dumps(work))
    chosen, began = job.hyperparameters, time.monotonic()
    equal = {
        "learning_rate": chosen.learning_rate,
        "beta": chosen.beta,
        "per_device_train_batch_size": chosen.batch_size,
        "lr_scheduler_type": chosen.lr_scheduler_type,
        "warmup_steps": chosen.warmup_ratio,  # below 1 a share of all steps
        "max_grad_norm": chosen.max_grad_norm,
        "weight_decay": chosen.weight_decay,
        "max_length": chosen.context_length,
        "train_sampling_strategy": "sequential",
    }
    peer = Peer("TRL, equal", "peer_trl_dpo.py", options=equal)
    result = Result(peer.name, chosen.learning_rate, chosen.beta or 0.0, chosen.batch_size)
    result.adapter = directory / "trl-adapter"
    for _, record in watch(peer.command(directory), Measured()):
        if record["kind"] == "step":
            result.tokens += record["tokens"]
        elif record["kind"] == "loss":
            result.losses.append(record["loss"])
    result.seconds = time.monotonic() - began
    return result


def held_out_measures(base: Path, job: JobSpec, held_out: Path, device: str, adapter: Path) -> str:
    """The DPO loss, the share of pairs with a gain, and the mean gain in nats, on the held-out pairs."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    loaded: FrozenBase = load_base(base.name, base, job.quantization, dtype, choose_kernels(torch.device(device)))
    values: dict[str, Any] = job.hyperparameters.model_dump() | {"beta": 0.1, "loss_type": None, "simpo_gamma": None}
    values |= {"desirable_weight": None, "undesirable_weight": None}
    as_dpo = job.model_copy(update={"method": "dpo", "hyperparameters": type(job.hyperparameters)(**values)})
    run = run_spec(as_dpo, held_out)
    dataset = read_dataset(load_renderer(base), held_out, run.data_parameters, "invalid_validation_file", _ignore)
    objective = SequenceObjective(loaded, load_adapter(loaded, run, adapter), run, None)
    found = evaluate(objective, dataset, JUDGED_ROW_TOKENS, _ignore)
    gain = found.mean("reward_margin") / 0.1
    accuracy = found.mean("reward_accuracy")
    return f"{len(dataset)} held-out pairs: loss {found.loss:.4f}, accuracy {accuracy:.3f}, gain {gain:.3f} nats"


def _ignore(doing: str) -> None:
    """Nothing watches the measurement."""


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"The comparison ended: {error}")
