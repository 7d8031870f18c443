"""What the check of a served adapter finds in a real vLLM: one training, right and wrong adapters, their verdicts.

`python -m benchmarks.served_check BASE_DIRECTORY` trains on the support tickets and needs the environment of
`make test-serving`. Each row is judged by the same function as a delivery.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from app.domain.deliveries.served_check import ServedCheck, ServedReference, judge
from app.domain.jobs.events import CheckpointSaved, ServedReferenceMeasured
from app.domain.jobs.spec import QuantizationSpec
from app.system.model_files import linear_layers
from tests.engines.__main__ import PYTHON
from tests.engines.vllm_server import EXAMPLE, VllmServer
from tests.trainer.helpers import make_spec, run_trainer
from worker.deliveries import engine_server as by_answers
from worker.deliveries.engine_server import Server, Vllm

WEIGHTS = "adapter_model.safetensors"
TIMEOUT_SECONDS = 600.0
Tensors = dict[str, torch.Tensor]


def main() -> None:
    options = _options()
    os.environ["TUNERY_VLLM_PYTHON"] = str(PYTHON)
    directory = Path(tempfile.mkdtemp(prefix="served-check-", dir=options.directory))
    started = time.monotonic()
    reference, adapters = train(options, directory)
    print(f"trained in {time.monotonic() - started:.0f} s; {_about(reference)}", flush=True)
    server = VllmServer(options.base.resolve(), directory / "vllm.log")
    server.start()
    try:
        server.wait()
        print(
            "| adapter in vLLM | method | mean difference | in noises | effect in vLLM | top-1 | verdict |", flush=True
        )
        for what, path in variants(adapters, directory):
            print(_row(what, check(server, path, reference, teacher_forcing=True), reference), flush=True)
        print(_row("the delivered one", check(server, adapters[-1], reference, teacher_forcing=False), reference))
    finally:
        server.stop()


def train(options: argparse.Namespace, directory: Path) -> tuple[ServedReference, list[Path]]:
    """(what the trainer recorded, the adapters of its checkpoints; the last is the result)."""
    rows = (EXAMPLE / "train.jsonl").read_bytes().splitlines(keepends=True)[: options.rows]
    training_file = directory / "train.jsonl"
    training_file.write_bytes(b"".join(rows))
    spec = make_spec(
        options.base.resolve(),
        training_file,
        validation_file=EXAMPLE / "valid.jsonl",
        target_modules=sorted({name.rpartition(".")[2] for name in linear_layers(options.base)} - {"lm_head"}),
        quantization=QuantizationSpec(compute_dtype="bfloat16").model_dump() if options.nf4 else None,
        n_epochs=options.epochs,
        batch_size=8,
        r=8,
        alpha=16,
        learning_rate=options.rate,
        threads=2,
    )
    code, log = run_trainer(spec, directory / "work")
    if code:
        sys.exit(f"the training failed: {log.last}")
    (record,) = log.of(ServedReferenceMeasured)
    found = [directory / "work" / str(each.directory) for each in log.of(CheckpointSaved)]
    return record.reference, [*found, directory / "work" / str(log.last.directory)]


def variants(adapters: list[Path], directory: Path) -> Iterator[tuple[str, Path]]:
    """The result, an earlier checkpoint, and wrong adapters made of the result."""
    result = adapters[-1]
    yield "the delivered one", result
    yield "the first checkpoint", adapters[0]

    def scaled(factor: float) -> Callable[[Tensors], Tensors]:
        return lambda tensors: {name: each * factor if "lora_B" in name else each for name, each in tensors.items()}

    changes = {
        "B times 0.8": scaled(0.8),
        "B times 1.25": scaled(1.25),
        "B times 0.01": scaled(0.01),
        "attention only": lambda tensors: {name: each for name, each in tensors.items() if "self_attn" in name},
        "renamed tensors": lambda tensors: {
            name.replace("self_attn", "attn").replace("mlp", "ffn"): each for name, each in tensors.items()
        },
    }
    for number, (what, change) in enumerate(changes.items()):
        path = shutil.copytree(result, directory / f"variant-{number}")
        save_file({name: each.contiguous() for name, each in change(load_file(path / WEIGHTS)).items()}, path / WEIGHTS)
        yield what, path


def check(server: VllmServer, adapter: Path, reference: ServedReference, teacher_forcing: bool) -> ServedCheck:
    engine, http, name = Vllm(), Server(server.url, None, TIMEOUT_SECONDS), adapter.name
    engine.load(http, name, str(adapter))
    ask = by_answers.by_teacher_forcing if teacher_forcing else by_answers.by_answers
    served = [ask(engine, http, "base", name, prompt) for prompt in reference.prompts]
    engine.unload(http, name)
    return judge(reference, served)


def _row(what: str, found: ServedCheck, reference: ServedReference) -> str:
    cells: list[Any] = [what, found.method, f"{found.difference:.4f}", f"{found.difference / reference.noise:.1f}"]
    cells += [f"{found.engine_effect:.3f}", f"{found.top1_agreement:.2%} of {found.tokens}", found.verdict.value]
    return f"| {' | '.join(cells)} |"


def _about(reference: ServedReference) -> str:
    tokens = sum(len(prompt.positions) for prompt in reference.prompts)
    about = {
        "prompts": len(reference.prompts),
        "expected tokens": tokens,
        "noise": round(reference.noise, 5),
        "effect": round(reference.effect, 4),
        "top1 agreement": round(reference.top1_agreement, 5),
    }
    return json.dumps(about)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a base model's directory")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--nf4", action="store_true", help="train on the base in NF4")
    parser.add_argument("--directory", type=Path, help="where adapters and logs stay")
    return parser.parse_args()


if __name__ == "__main__":
    main()
