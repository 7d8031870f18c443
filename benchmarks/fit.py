"""`make bench-fit`: check the plan's memory estimate with twenty jobs under limits around the predicted peak.

    python -m benchmarks.fit [--jobs 20] [--spread 0.2] [--hopeful]

The limit is RLIMIT_DATA of a real trainer: private writable memory, touched or not. RLIMIT_AS would count the code of
every library and reserved address space, which say nothing of what is needed.

First one job under a limit that leaves nothing says what the smallest layout needs. The verdict is the plan's: needed
<= 97 % of the limit. Where it says that the job fits, the job is run as it is planned; where it says that it doesn't,
it is run all the same, in the smallest layout. It fits if it ends with an adapter. A wrong verdict counts where the
limit is over 5 % away. `--hopeful` fools every plan into the largest layout instead, so that each repair is made before
a job gives up; what the tries before leave behind then counts, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from app.domain.jobs.spec import TrainerSpec
from app.domain.planning.estimate import USABLE_MEMORY_SHARE
from app.domain.planning.execution_plan import Measurement, Recompute
from app.system.model_files import hash_directory
from tests.tiny import make_tiny_base

SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 4096, "max_position_embeddings": 4096,
}  # fmt: skip
ALL_LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
HOPEFUL = Measurement(recompute="nothing", cache_weights=False, loaded_ratio=1.0, working_ratio=0.0001)
# As if everything but the smallest layout had been seen to take far more than there is.
SMALLEST = tuple(
    Measurement(
        recompute=recompute, cache_weights=cache, loaded_ratio=1.0,
        working_ratio=0.0001 if (recompute, cache) == ("everything", False) else 1e6,
    )
    for recompute in get_args(Recompute)
    for cache in (True, False)
)  # fmt: skip
LONGEST_WORDS = 260  # about 1,500 tokens of the byte-level tokenizer
TOLERANCE = 0.05


@dataclass(frozen=True)
class Job:
    limit_bytes: int
    fits: bool
    seconds: float
    reason: str


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=20)
    options.add_argument(
        "--spread", type=float, default=0.2, help="limits from 1 - spread to 1 + spread times the peak"
    )
    options.add_argument("--hopeful", action="store_true", help="begin with the largest layout, and repair")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunery-fit-") as name:
        place = Path(name)
        base = make_tiny_base(place / "base", **SHAPE)
        data = _write_data(place / "train.jsonl")
        needed = _needed(base, data, place)
        print(f"predicted peak of the smallest layout: {needed / 1e6:.1f} MB", flush=True)
        wrong = _try_all(base, data, place, needed, arguments)
    print(f"wrong verdicts outside {TOLERANCE:.0%} of the peak: {wrong} of {arguments.jobs}")


def _try_all(base: Path, data: Path, place: Path, needed: int, arguments: argparse.Namespace) -> int:
    wrong = 0
    for number in range(arguments.jobs):
        ratio = 1 - arguments.spread + 2 * arguments.spread * number / (arguments.jobs - 1)
        says = is_said_to_fit(needed, int(ratio * needed))
        layout = (HOPEFUL,) if arguments.hopeful else () if says else SMALLEST
        job = _try(base, data, place / f"job-{number}", int(ratio * needed), layout)
        is_wrong = says != job.fits and abs(ratio - 1) > TOLERANCE
        wrong += is_wrong
        mark = "WRONG" if is_wrong else "" if says == job.fits else "(within the tolerance)"
        print(
            f"{ratio:5.2f} x peak = {job.limit_bytes / 1e6:6.1f} MB: plan {'fits' if says else 'no':4} "
            f"truth {'fits' if job.fits else 'no':4} {job.seconds:5.1f} s {job.reason} {mark}",
            flush=True,
        )
    return wrong


def is_said_to_fit(needed_bytes: int, limit_bytes: int) -> bool:
    return needed_bytes <= USABLE_MEMORY_SHARE * limit_bytes


def _needed(base: Path, data: Path, place: Path) -> int:
    """Without a limit the trainer would count resident memory: a limit far too high makes it count the same thing."""
    generous = _records(base, data, place / "generous", 64 << 30, ())
    planned = next(record for record in generous if record["kind"] == "planned")
    used = planned["components"]["process"] + planned["components"]["base"] + planned["components"]["adapter"]
    tight = _records(base, data, place / "tight", used + (8 << 20), ())
    return int(next(record for record in tight if record["kind"] == "planned")["peak_bytes"])


def _try(base: Path, data: Path, workdir: Path, limit_bytes: int, measurements: tuple[Measurement, ...]) -> Job:
    began = time.monotonic()
    records = _records(base, data, workdir, limit_bytes, measurements)
    last = records[-1] if records else {"kind": "died"}
    return Job(limit_bytes, last["kind"] == "done", time.monotonic() - began, str(last.get("reason", last["kind"])))


def _records(
    base: Path, data: Path, workdir: Path, limit_bytes: int, measurements: tuple[Measurement, ...]
) -> list[dict[str, Any]]:
    workdir.mkdir()
    (workdir / "spec.json").write_text(_spec(base, data, measurements).model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "worker.trainer", str(workdir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(workdir / "log").open("wb"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes)),
        check=False,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _spec(base: Path, data: Path, measurements: tuple[Measurement, ...]) -> TrainerSpec:
    knobs = {
        "n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "learning_rate_multiplier": 1.0, "warmup_ratio": 0.0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "lr_scheduler_type": "linear", "context_length": 4096,
        "max_steps": 2,
    }  # fmt: skip
    run = {
        "run_id": "fit",
        "lora": {"r": 16, "alpha": 32, "target_modules": ALL_LINEAR},
        "hyperparameters": knobs,
        "seed": 1,
        "training_file": data,
        "training_file_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
    }
    return TrainerSpec.model_validate(
        {
            "base": {"name": "fit", "directory": base, "manifest_sha256": hash_directory(base)[1]},
            "quantization": {},
            "device": "cpu",
            "threads": 1,
            "measurements": measurements,
            "runs": (run,),
        }
    )


def _write_data(path: Path) -> Path:
    dice = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(8):
            words = [dice.choice(("red", "green", "blue", "amber")) for _ in range(LONGEST_WORDS - 20 * number)]
            user = {"role": "user", "content": " ".join(words)}
            assistant = {"role": "assistant", "content": " ".join(sorted(set(words)))}
            file.write(json.dumps({"messages": [user, assistant]}) + "\n")
    return path


if __name__ == "__main__":
    main()
