"""What each hand-written mechanism of the trainer gains alone: `make bench-mechanisms`.

The workload of `make bench-train` is trained with everything, and again without one mechanism at a time, A B C A B C.
CPU time of a process with one thread is compared, which other programs on the machine change little; with --threads 2
and --wall it is the time on the clock, for a quiet machine. A ratio above 1 is what the mechanism saves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DROPPED_STEPS = 2  # the first ones compile kernels


def without_norms_and_gated_layers() -> None:
    from worker.trainer.model import base_model

    base_model.replace_functions = lambda *_: {}


def without_blocks_of_documents() -> None:
    from worker.trainer.model.attention import attention

    attention.MAX_BLOCK_ATTENTION_TOKENS = 0


def without_elementwise_recomputation() -> None:
    """The plan stays what it is; the layers keep everything."""
    from worker.trainer.memory.activation_checkpointing import Recomputation

    def keep_everything(self: Recomputation, *_: object, **__: object) -> None:
        self.mode, self.recomputed_layers = "nothing", 0

    Recomputation.set = keep_everything  # type: ignore[method-assign]


def without_linear_cross_entropy() -> None:
    """Plain torch: all logits of the labelled tokens at once."""
    import torch.nn.functional as F  # noqa: N812

    from worker.trainer.objective import objective

    def plain(hidden_N_D, head_V_D, targets_N, weights_N=None, *_):  # type: ignore[no-untyped-def]
        logits_N_V = (hidden_N_D @ head_V_D.to(hidden_N_D.dtype).T).float()
        losses_N = F.cross_entropy(logits_N_V, targets_N, reduction="none")
        total = (losses_N if weights_N is None else losses_N * weights_N).sum()
        return total, losses_N.detach(), logits_N_V.detach().argmax(-1) == targets_N

    objective.linear_cross_entropy = plain


def without_compiler_free_bitsandbytes() -> None:
    import bitsandbytes  # noqa: F401


def without_limited_product_cache() -> None:
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ["LRU_CACHE_CAPACITY"] = "1024"


def without_cached_weights() -> None:
    from worker.trainer.model.base_model import FrozenBase

    cache_weights = FrozenBase.cache_weights
    FrozenBase.cache_weights = lambda self, _: cache_weights(self, False)  # type: ignore[method-assign]


MECHANISMS: dict[str, Callable[[], None]] = {
    "everything": lambda: None,
    "norms and gated layers": without_norms_and_gated_layers,
    "blocks of documents": without_blocks_of_documents,
    "elementwise recomputation": without_elementwise_recomputation,
    "linear cross entropy": without_linear_cross_entropy,
    "compiler-free bitsandbytes": without_compiler_free_bitsandbytes,
    "limited product cache": without_limited_product_cache,
    "cached weights": without_cached_weights,
}


@dataclass
class Figures:
    step_seconds: list[float] = field(default_factory=list)  # CPU or clock, each the minimum of one run
    start_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def main() -> None:
    options = parse()
    if options.child:
        MECHANISMS[options.child]()
        from worker.trainer.__main__ import main as train

        sys.exit(train([options.workdir]))
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as directory:
        spec = prepare(Path(directory), options)
        names = ["everything", *(options.only or [name for name in MECHANISMS if name != "everything"])]
        figures = {name: Figures() for name in names}
        for repetition in range(options.rounds):
            for name in names:
                run(Path(directory) / f"{repetition}-{name.replace(' ', '-')}", spec, name, figures[name], options)
        report(figures)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-mechanisms", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--data", type=Path, default=HERE / "gsm8k-512.jsonl", help="a chat JSONL file")
    parser.add_argument("--threads", type=int, default=1, help="0: as the trainer chooses")
    parser.add_argument("--wall", action="store_true", help="compare the time on the clock")
    parser.add_argument("--only", nargs="*", choices=[name for name in MECHANISMS if name != "everything"])
    parser.add_argument("--child", choices=MECHANISMS, help=argparse.SUPPRESS)
    parser.add_argument("--workdir", help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(directory: Path, options: argparse.Namespace) -> str:
    from benchmarks.train import convert
    from benchmarks.workload import make_spec

    base = convert(directory / "base")
    spec = make_spec(base, options.data, None, options.steps, 1e-3, "cpu")
    return spec.model_copy(update={"threads": options.threads or None}).model_dump_json()


def run(workdir: Path, spec: str, name: str, figures: Figures, options: argparse.Namespace) -> None:
    workdir.mkdir()
    (workdir / "spec.json").write_text(spec)
    command = [sys.executable, "-m", "benchmarks.mechanisms", "--child", name, "--workdir", str(workdir)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process, times = psutil.Process(child.pid), []

    def now() -> float:
        cpu = process.cpu_times()
        return time.monotonic() if options.wall else cpu.user + cpu.system

    assert child.stdout is not None
    began, peak = now(), 0
    for line in child.stdout:
        record = json.loads(line)
        if record["kind"] == "started":
            figures.start_seconds.append(now() - began)
            times.append(now())
        elif record["kind"] == "metric":
            times.append(now())
            peak = _peak_bytes(child.pid)
            last = record["train_loss"]
        elif record["kind"] == "failed":
            raise RuntimeError(record["message"])
    child.wait()
    steps = [after - before for before, after in zip(times[DROPPED_STEPS:], times[DROPPED_STEPS + 1 :], strict=False)]
    figures.step_seconds.append(sum(steps) / len(steps))
    figures.peak_bytes.append(peak)
    figures.losses.append(last)


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def report(figures: dict[str, Figures]) -> None:
    whole = figures["everything"]
    print("\n| without | step, s | times | peak, MB | times | start, s | times | last loss |\n" + 8 * "|---" + "|")
    for name, each in figures.items():
        step, start, peak = min(each.step_seconds), min(each.start_seconds), statistics.median(each.peak_bytes)
        print(
            f"| {name if each is not whole else 'nothing'} | {step:.2f} | {step / min(whole.step_seconds):.3f} "
            f"| {peak / 1e6:,.0f} | {peak / statistics.median(whole.peak_bytes):.3f} "
            f"| {start:.2f} | {start / min(whole.start_seconds):.3f} | {each.losses[-1]:.5f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
