"""DPO of Tunery and of TRL: the same base, pairs and tokens, one epoch: `make bench-dpo`.

Rows: "auto" of Tunery, the defaults of TRL, and TRL with Tunery's rate and batch size, which shows the objective alone.
Held-out accuracy is the share of pairs whose preferred answer gained more probability than the other one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import BaseSpec, JobSpec, RunSpec, TrainerSpec
from app.system import model_files
from app.system.artifact_directory import sha256_file
from benchmarks import peers
from benchmarks.peers import Peer
from benchmarks.preferences import write_pairs
from benchmarks.table import Measured
from benchmarks.train import convert, watch
from worker.trainer.runtime.device import choose_threads

HERE = Path(__file__).resolve().parent
SEED = 7


@dataclass
class Result:
    name: str
    learning_rate: float = 0.0
    beta: float = 0.0
    batch_size: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None

    def __str__(self) -> str:
        about = f"{self.name:<28} rate {self.learning_rate:g}, beta {self.beta:g}, batch {self.batch_size}"
        losses = f"training loss {self.losses[0]:.3f} -> {sum(self.losses[-4:]) / len(self.losses[-4:]):.3f}"
        held_out = f"held-out loss {self.held_out_loss:.3f}, accuracy {self.held_out_accuracy:.3f}"
        return f"{about}; {self.tokens:,} tokens; {losses}; {held_out}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-dpo", description=__doc__)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--model", type=Path, help="a model directory (default: the bundled 135M model)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=choose_threads())
    parser.add_argument("--only", choices=["tunery", "defaults", "equal"], action="append")
    options = parser.parse_args()
    peers.build_trl()
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as temporary:
        directory = Path(temporary)
        base = options.model or convert(directory / "base")
        write_pairs(HERE / "gsm8k-512.jsonl", directory / "train.jsonl", options.pairs)
        write_pairs(HERE / "gsm8k-valid-64.jsonl", directory / "held-out.jsonl", options.held_out)
        compare(directory, resolve_job(base, options.pairs), base, options)


def compare(directory: Path, job: JobSpec, base: Path, options: argparse.Namespace) -> None:
    chosen = options.only or ["tunery", "defaults", "equal"]
    work = {"base": str(base), "r": job.lora.r, "alpha": job.lora.alpha}
    work |= {"device": options.device, "threads": options.threads}
    (directory / "peer.json").write_text(json.dumps(work))
    if "tunery" in chosen:
        print(run_tunery(directory, job, base, options), flush=True)
    if "defaults" in chosen:
        print(run_trl(directory, "TRL, its defaults", {}), flush=True)
    if "equal" in chosen:
        print(run_trl(directory, "TRL, Tunery's rate and batch", equal_options(job)), flush=True)


def resolve_job(base: Path, pairs: int) -> JobSpec:
    """What the request of a user resolves to: "auto", but for one epoch, as the peer has."""
    body = {"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}, "seed": SEED}
    body |= {"validation_file": "held-out"}
    return resolve(body, base.name, model_files.read_catalog_entry(base), pairs)


def equal_options(job: JobSpec) -> dict[str, object]:
    chosen = job.hyperparameters
    return {
        "learning_rate": chosen.learning_rate,
        "beta": chosen.beta,
        "per_device_train_batch_size": chosen.batch_size,
        "lr_scheduler_type": chosen.lr_scheduler_type,
        "warmup_steps": chosen.warmup_ratio,  # below 1 a share of all steps
    }


def run_tunery(directory: Path, job: JobSpec, base: Path, options: argparse.Namespace) -> Result:
    """Raises RuntimeError if the run fails."""
    files = {"training_file": directory / "train.jsonl", "validation_file": directory / "held-out.jsonl"}
    hashes = {f"{name}_sha256": sha256_file(path) for name, path in files.items()}
    run = RunSpec.model_validate(
        {"run_id": "bench", "seed": job.seed, "method": job.method, "lora": job.lora}
        | {"hyperparameters": job.hyperparameters}
        | files
        | hashes
    )
    described = BaseSpec(name=base.name, directory=base, manifest_sha256=model_files.hash_directory(base)[1])
    spec = TrainerSpec(
        base=described, quantization=job.quantization, runs=(run,), device=options.device, threads=options.threads
    )
    workdir = directory / "tunery"
    workdir.mkdir()
    (workdir / "spec.json").write_text(spec.model_dump_json())
    chosen = job.hyperparameters
    result = Result("Tunery, auto", chosen.learning_rate, chosen.beta or 0.0, chosen.batch_size)
    for _, record in watch([sys.executable, "-m", "worker.trainer", str(workdir)], Measured()):
        if record["kind"] == "metric":
            result.losses.append(record["train_loss"])
            result.tokens = record["trained_tokens"]
            result.held_out_loss = record["full_valid_loss"]
            result.held_out_accuracy = record["full_valid_reward_accuracy"]
        elif record["kind"] == "failed":
            raise RuntimeError(record["message"])
    return result


def run_trl(directory: Path, name: str, options: dict[str, object]) -> Result:
    """Raises RuntimeError if the run fails."""
    peer, result = Peer(name, "peer_trl_dpo.py", options=options), Result(name)
    for _, record in watch(peer.command(directory), Measured()):
        if record["kind"] == "ready":
            result.learning_rate, result.beta = record["learning_rate"], record["beta"]
            result.batch_size = record["batch_size"]
        elif record["kind"] == "step":
            result.tokens += record["tokens"]
        elif record["kind"] == "loss":
            result.losses.append(record["loss"])
        elif record["kind"] == "validation":
            result.held_out_loss, result.held_out_accuracy = record["loss"], record["accuracy"]
    return result


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, subprocess.SubprocessError) as error:
        sys.exit(f"The comparison ended: {error}")
