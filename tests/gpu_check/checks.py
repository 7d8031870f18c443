"""The checks of `make gpu-check`: each returns what it measured, or raises CheckFailed.

Most run on a CPU as well, so that a test can show that they fail when something is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.jobs.events import Command, Message, Planned, Probed, parse_record
from app.system.model_files import read_catalog_entry
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import Attempt, make_spec, run_trainer
from tests.trainer.model.bases import make_base
from worker.trainer.kernels.cuda.memory import CudaMemory
from worker.trainer.model.attention.attention import document_attention
from worker.trainer.model.attention.attention_check import AttentionCall, check_attention
from worker.trainer.objective import objective
from worker.trainer.runtime.device import dtype_name
from worker.trainer.runtime.failures import Failure

MAX_FALL_DIFFERENCE = 0.05  # a run that learns half differs by a half, bfloat16 on a CPU from float32 by 0.003
MAX_FIRST_LOSS_DIFFERENCE = 0.005
MAX_PLAN_ERROR = 0.15  # of the measured working memory
HEAD_SIZES = ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (512, 512))
PARTIALLY_ROTATED = ("Phi-4-mini", "Qwen3.5 text")
FAMILIES = ("llama", "qwen3", "phi3", "glm4", "gemma3_text", "qwen3_moe", "qwen3_5_text")
SIZES_OF_FAMILY = {
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512},
    "qwen3_5_text": {
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
}


class CheckFailed(Exception):
    """A check's finding: what was seen and what is allowed."""


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable[[torch.device, Path], str]  # returns what was measured
    needs_gpus: int = 0
    limit_seconds: float = 240.0


def attention(device: torch.device, _directory: Path) -> str:
    """Forward and backward of every kernel against float32, with and without a sliding window."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for dtype in dtypes:
        for query_size, value_size in HEAD_SIZES:
            for window in (None, 16):
                options = {"scaling": None, "sliding_window": window}
                module = torch.nn.Module()
                call = AttentionCall(document_attention, module, options, 8, 2, query_size, value_size, device, dtype)
                try:
                    check_attention("the model", [call])
                except (Failure, RuntimeError) as error:
                    raise CheckFailed(f"head size {query_size}, {dtype_name(dtype)}: {error}") from error
    return f"{len(HEAD_SIZES)} head sizes, {', '.join(map(dtype_name, dtypes))}"


def quantizations(device: torch.device, directory: Path) -> str:
    """A short run in each quantization learns as much as the same run in float32 on a CPU."""
    base, data = _tiny(directory)
    choices: list[Any] = [
        {},
        {"type": "fp4"},
        {"bits": 8},
        {"compute_dtype": "float16"},
        {"compute_dtype": "float32"},
        None,
    ]
    for number, quantization in enumerate(choices):
        losses = [
            _train(base, data, directory / f"{number}-{where}", device=where, quantization=choice).losses
            for where, choice in ((device.type, quantization), ("cpu", _in_float32(quantization)))
        ]
        if problem := fall_problem(*losses):
            raise CheckFailed(f"quantization {quantization}: {problem}")
    return f"{len(choices)} quantizations, falls of the loss within {MAX_FALL_DIFFERENCE:.0%}"


def out_of_memory(device: torch.device, directory: Path) -> str:
    """A step that runs out of memory twice is repeated, reported, and gives the same result."""
    base, data = _tiny(directory)
    expected = _train(base, data, directory / "plain", device=device.type).losses
    hidden_states, calls = objective.hidden_states, []

    def short(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        hidden = hidden_states(*arguments, **options)
        if len(calls) in (3, 4):
            if device.type == "cuda":
                torch.empty(1 << 50, dtype=torch.uint8, device=device)
            raise MemoryError("out of memory")
        return hidden

    objective.hidden_states = short
    try:
        log = _train(base, data, directory / "short", device=device.type)
    finally:
        objective.hidden_states = hidden_states
    events = [message.message for message in log.of(Message) if message.message.startswith("Out of memory")]
    if len(events) != 2:
        raise CheckFailed(f"two events were expected, seen: {events}")
    if problem := fall_problem(log.losses, expected):
        raise CheckFailed(problem)
    return events[1]


def resume(device: torch.device, directory: Path) -> str:
    """A run that is drained and resumed ends with the adapter of an uninterrupted one."""
    base, data = _tiny(directory)
    options = {"device": device.type, "dropout": 0.2, "quantization": {"compute_dtype": "float32"}}
    whole = _train(base, data, directory / "whole", **options)
    _, first = run_trainer(make_spec(base, data, **options), directory / "first", stop_at=(3, Command.DRAIN))
    snapshot = directory / "first" / first.records[-2].directory
    second = _train(base, data, directory / "second", resume_from=snapshot, **options)
    one, other = whole.adapter(), second.adapter()
    difference = max(float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-9)) for name in one)
    allowed = 0.0 if device.type == "cpu" else 1e-2
    if difference > allowed:
        raise CheckFailed(f"the adapters differ by {difference:.1e}, {allowed:.0e} is allowed")
    return f"difference {difference:.1e}"


def plans(device: torch.device, directory: Path) -> str:
    """The planned working memory of each architecture is near the measured one."""
    data = make_tiny_dataset(directory / "long.jsonl", 200)
    errors = {}
    for family in FAMILIES:
        base = make_family(family, directory / family)
        log = _train(base, data, directory / f"{family}-run", device=device.type, batch_size=64, max_steps=4)
        (planned,), (probed,) = log.of(Planned), log.of(Probed)
        errors[family] = working_error(planned, probed)
    text = ", ".join(f"{family} {error:+.0%}" for family, error in errors.items())
    if max(map(abs, errors.values())) > MAX_PLAN_ERROR:
        raise CheckFailed(f"planned over measured working memory: {text}; {MAX_PLAN_ERROR:.0%} is allowed")
    return text


def working_error(planned: Planned, probed: Probed) -> float:
    """Compare what a step allocates above the loaded model: the CUDA context and the base hide an error of the peak."""
    return planned.working_bytes / (probed.peak_bytes - probed.loaded_bytes) - 1


def cuda_kernels(device: torch.device, directory: Path) -> str:
    """A run with TUNERY_CUDA_KERNELS learns as one without, also where a part of each head is rotated.

    A run on a CPU ignores the setting.
    """
    base, data = _tiny(directory)
    seen = [_with_kernels(base, data, directory / "tiny", device)]
    for name in PARTIALLY_ROTATED:
        options = {"target_modules": ["down_proj", "o_proj"]}
        seen.append(
            _with_kernels(make_base(name, directory / name), data, directory / f"{name}-run", device, **options)
        )
    return "; ".join(dict.fromkeys(seen))


def _with_kernels(base: Path, data: Path, directory: Path, device: torch.device, **options: Any) -> str:
    plain = _train(base, data, directory / "plain", device=device.type, **options)
    spec = make_spec(base, data, device=device.type, **options).model_copy(update={"cuda_kernels": True})
    code, log = run_trainer(spec, directory / "kernels")
    if code:
        raise CheckFailed(f"the run of {base.name} ended with exit code {code}: {log.last}")
    if problem := fall_problem(log.losses, plain.losses):
        raise CheckFailed(f"{base.name}: {problem}")
    messages = [message.message for message in log.of(Message) if message.message.startswith("TUNERY_CUDA_KERNELS")]
    if device.type == "cuda" and not messages:
        raise CheckFailed("no event names the replaced modules")
    return messages[0] if messages else "ignored on this device"


def slot_budget(device: torch.device, _directory: Path) -> str:
    """A process with the budget of a slot has no more: an allocation above it fails, one below it does not."""
    total_bytes = torch.cuda.mem_get_info(device)[1]
    budget_bytes = total_bytes // 4
    memory = CudaMemory(device)
    memory.set_limits(budget_bytes)
    measured = memory.measure().capacity_bytes
    if abs(measured - budget_bytes) > 1e-3 * budget_bytes:
        raise CheckFailed(f"a budget of {budget_bytes} bytes is measured as {measured}")
    torch.empty(budget_bytes // 2, dtype=torch.uint8, device=device)
    try:
        torch.empty(budget_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return f"{budget_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB"
    raise CheckFailed(f"{1.5 * budget_bytes:.0f} bytes were allocated under a budget of {budget_bytes}")


def two_gpus(device: torch.device, directory: Path) -> str:
    """Two processes (NCCL on CUDA) learn as one does."""
    base, data = _tiny(directory)
    options = {"device": device.type, "quantization": {"compute_dtype": "float32"}}
    alone = _train(base, data, directory / "alone", **options)
    workdir = directory / "two"
    workdir.mkdir()
    (workdir / "spec.json").write_text(make_spec(base, data, world_size=2, **options).model_dump_json())
    command = [sys.executable, "-m", "worker.trainer", str(workdir)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | {"TUNERY_PARENT_PID": str(os.getpid())}
    )
    losses = [
        record.train_loss
        for record in map(parse_record, done.stdout.splitlines(keepends=True))
        if record.kind == "metric"
    ]
    if done.returncode or len(losses) != len(alone.losses):
        raise CheckFailed(f"exit code {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}")
    if problem := fall_problem(losses, alone.losses):
        raise CheckFailed(problem)
    return f"{len(losses)} steps"


CHECKS = (
    Check("attention", attention),
    Check("quantizations", quantizations),
    Check("out of memory", out_of_memory),
    Check("resume", resume),
    Check("plans", plans, needs_gpus=1),
    Check("CUDA kernels", cuda_kernels),
    Check("slot budget", slot_budget, needs_gpus=1, limit_seconds=60.0),
    Check("two GPUs", two_gpus, needs_gpus=2),
)


def fall_problem(losses: Sequence[float], expected: Sequence[float]) -> str:
    """Compare the first loss, and how far each later loss is below it. Returns the difference; empty if it is small.

    A comparison of the losses themselves would accept a run that learns nothing: they fall by some per cent only.
    """
    if len(losses) != len(expected) or len(losses) < 2:
        return f"{len(losses)} losses, expected {len(expected)}"
    if abs(losses[0] / expected[0] - 1) > MAX_FIRST_LOSS_DIFFERENCE:
        return f"the first loss is {losses[0]:.4f}, expected {expected[0]:.4f}"
    falls, expected_falls = ([run[0] - loss for loss in run[1:]] for run in (losses, expected))
    largest = max(abs(fall) for fall in expected_falls)
    difference = max(abs(one - two) for one, two in zip(falls, expected_falls, strict=True)) / largest
    if not difference <= MAX_FALL_DIFFERENCE:
        return f"the loss falls by {falls[-1]:.4f}, expected {expected_falls[-1]:.4f}"
    return ""


def make_family(model_type: str, directory: Path, **changes: int) -> Path:
    """Make a random model with the tokenizer of the tiny one: 8 layers of width 512, or other sizes."""
    base = make_tiny_base(directory)
    vocabulary = int(AutoConfig.from_pretrained(base).vocab_size)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 8, "vocab_size": vocabulary, "max_position_embeddings": 2048}
    sizes |= changes
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    head = {} if model_type in ("llama", "phi3") else {"head_dim": 64}
    config = AutoConfig.for_model(model_type, **sizes, **tokens, **head, **SIZES_OF_FAMILY.get(model_type, {}))
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(base)
    return base


def _tiny(directory: Path) -> tuple[Path, Path]:
    return make_tiny_base(directory / "base"), make_tiny_dataset(directory / "train.jsonl", 12)


def _train(base: Path, data: Path, workdir: Path, **changes: Any) -> Attempt:
    targets = sorted(read_catalog_entry(base).target_modules)
    code, log = run_trainer(make_spec(base, data, **{"target_modules": targets} | changes), workdir)
    if code:
        raise CheckFailed(f"the run ended with exit code {code}: {log.last}")
    return log


def _in_float32(quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if quantization is None else quantization | {"compute_dtype": "float32"}
