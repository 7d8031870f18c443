"""The list of `make gpu-check`, and its short trainings of tiny models: each returns what it measured, or raises
CheckFailed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from app.domain.jobs.events import Command, Message, Planned, Probed, parse_record
from app.domain.jobs.hyperparameters import OptimizerName
from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from app.system.model_files import read_catalog_entry
from tests.gpu_check import machine_checks, model_checks
from tests.gpu_check.check import REPORT, Check, CheckFailed, Seen, Site
from tests.gpu_check.model_checks import FORMATS, MAX_PLAN_ERROR, working_error
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import Attempt, make_spec, run_trainer
from worker.trainer.adapter.lora import AdapterSwitch, make_adapter
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.experts import NAME, freeze_experts
from worker.trainer.objective import objective
from worker.trainer.runtime.device import choose_compute_dtype

MAX_FALL_DIFFERENCE = 0.05  # a run that learns half differs by a half, bfloat16 on a CPU from float32 by 0.003
MAX_FIRST_LOSS_DIFFERENCE = 0.005
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
# A layer of Qwen3-30B-A3B on a GPU; experts, experts of a token, hidden size, inner size, tokens.
EXPERT_SIZES = {"cuda": (128, 8, 2048, 768, 8192), "cpu": (8, 2, 64, 32, 256)}
EXPERT_NAMES = ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")
MIN_EXPERT_SHARE = 0.2  # of the speed of one dense product; a loop over experts reaches 0.05 on an H100, by arithmetic
REPEATS = 5


def quantizations(site: Site) -> Seen:
    """A short run in each quantization learns as much as the same run in float32 on a CPU."""
    base, data = _tiny(site.directory)
    choices: list[Any] = [{}, {"bits": 8}, None]
    if site.is_cuda:
        choices += [{"type": "fp4"}, {"compute_dtype": "float16"}, {"compute_dtype": "float32"}]
    for number, quantization in enumerate(choices):
        losses = [
            _train(base, data, site.directory / f"{number}-{where}", device=where, quantization=choice).losses
            for where, choice in ((site.device.type, quantization), ("cpu", _in_float32(quantization)))
        ]
        _expect_fall(f"quantization {quantization}", *losses)
    return f"{len(choices)} quantizations, falls of the loss within {MAX_FALL_DIFFERENCE:.0%}"


def experts(site: Site) -> Seen:
    """Stacked experts, frozen and adapted: a run learns as in float32 on a CPU, and the products are grouped ones."""
    base = make_family("qwen3_moe", site.directory / "base", num_hidden_layers=2, hidden_size=128)
    data = make_tiny_dataset(site.directory / "train.jsonl", 12)
    for name, lora in (("frozen", {}), ("adapted", {"target_parameters": EXPERT_NAMES})):
        losses = [
            _train(base, data, site.directory / f"{name}-{where}", device=where, quantization=choice, **lora).losses
            for where, choice in ((site.device.type, {}), ("cpu", {"compute_dtype": "float32"}))
        ]
        _expect_fall(f"{name} experts", *losses)
    return {
        f"{bits}, {kind}": f"{share:.2f} of a dense product's speed"
        for bits, quantization in FORMATS.items()
        for kind in ("frozen", "adapted")
        for share in [_expert_share(site, quantization, is_adapted=kind == "adapted")]
    }


def _expert_share(site: Site, quantization: QuantizationSpec | None, *, is_adapted: bool) -> float:
    """The speed of forward and backward of a layer of experts, relative to a dense product with as many FLOP."""
    count, chosen, width, inner, tokens = EXPERT_SIZES[site.device.type]
    dtype, kernels = choose_compute_dtype(None, site.device), choose_kernels(site.device)
    config = Qwen3MoeConfig(num_experts=count, hidden_size=width, moe_intermediate_size=inner)
    module, switch = Qwen3MoeExperts(config).to(site.device, dtype).requires_grad_(False), AdapterSwitch()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    module.config._experts_implementation = NAME
    names = [name for name, _ in module.named_parameters()]
    stacks = {
        name: freeze_experts(module, name, name, module._parameters[name].data, switch, quantization, dtype)
        for name in names
    }
    if is_adapted:
        lora = LoraSpec(r=16, alpha=16, target_modules=(), target_parameters=tuple(names))
        switch.active = make_adapter(lora, 0, {}, kernels, stacks)
    hidden_T_K = torch.randn(tokens, width, device=site.device, dtype=dtype).requires_grad_()
    weights_T_C, experts_T_C = torch.rand(tokens, count, device=site.device).topk(chosen)
    weights_T_C = weights_T_C.to(dtype)
    rows = torch.randn(tokens * chosen, width, device=site.device, dtype=dtype).requires_grad_()
    dense = torch.randn(3 * inner, width, device=site.device, dtype=dtype)

    def seconds(step: Any) -> float:
        times = []
        for _ in range(REPEATS):
            kernels.synchronize()
            started = time.perf_counter()
            step().sum().backward()
            kernels.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    share = seconds(lambda: rows @ dense.t()) / seconds(lambda: module(hidden_T_K, experts_T_C, weights_T_C))
    if site.is_cuda and not share >= MIN_EXPERT_SHARE:
        kind = f"{'adapted' if is_adapted else 'frozen'} experts"
        remedy = "install torch 2.12 or newer, whose grouped products run on this GPU, or report it"
        raise CheckFailed(f"{kind} have {share:.2f} of a dense product's speed", f"{MIN_EXPERT_SHARE} and more", remedy)
    return share


def out_of_memory(site: Site) -> Seen:
    """A step that runs out of memory twice is repeated, reported, and gives the same result."""
    base, data = _tiny(site.directory)
    expected = _train(base, data, site.directory / "plain", device=site.device.type).losses
    hidden_states, calls = objective.hidden_states, []

    def short(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        hidden = hidden_states(*arguments, **options)
        if len(calls) in (3, 4):
            if site.is_cuda:
                torch.empty(1 << 50, dtype=torch.uint8, device=site.device)
            raise MemoryError("out of memory")
        return hidden

    objective.hidden_states = short
    try:
        log = _train(base, data, site.directory / "short", device=site.device.type)
    finally:
        objective.hidden_states = hidden_states
    events = [message.message for message in log.of(Message) if message.message.startswith("Out of memory")]
    if len(events) != 2:
        raise CheckFailed(f"events {events}", "two that say what is repeated", REPORT)
    _expect_fall("the repeated run", log.losses, expected)
    return events[1]


def resume(site: Site) -> Seen:
    """A run that is drained and resumed ends with the adapter of an uninterrupted one, with each optimizer."""
    base, data = _tiny(site.directory)
    differences = {}
    for optimizer in get_args(OptimizerName):
        directory = site.directory / optimizer
        options = {"device": site.device.type, "dropout": 0.2, "quantization": {"compute_dtype": "float32"}}
        options |= {"optimizer": optimizer, "n_epochs": 1 if optimizer == "adamw_8bit" else 2}
        whole = _train(base, data, directory / "whole", **options)
        stopped = directory / "first"
        _, first = run_trainer(make_spec(base, data, **options), stopped, stop_at=(2, Command.DRAIN))
        second = _train(base, data, directory / "second", resume_from=stopped / first.records[-2].directory, **options)
        one, other = whole.adapter(), second.adapter()
        found = max(float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-9)) for name in one)
        allowed = 1e-2 if site.is_cuda else 0.0
        if not found <= allowed:
            raise CheckFailed(f"{optimizer}: the adapters differ by {found:.1e}", f"{allowed:.0e}", REPORT)
        differences[f"{optimizer}, difference"] = f"{found:.1e}"
    return differences


def plans(site: Site) -> Seen:
    """The planned working memory of each architecture is near the measured one."""
    data = make_tiny_dataset(site.directory / "long.jsonl", 200)
    errors = {}
    for family in FAMILIES:
        base = make_family(family, site.directory / family)
        log = _train(base, data, site.directory / f"{family}-run", device=site.device.type, batch_size=64, max_steps=4)
        (planned,), (probed,) = log.of(Planned), log.of(Probed)
        errors[family] = working_error(planned, probed)
    text = ", ".join(f"{family} {error:+.0%}" for family, error in errors.items())
    if max(map(abs, errors.values())) > MAX_PLAN_ERROR["cuda"]:
        raise CheckFailed(f"planned over measured working memory: {text}", f"{MAX_PLAN_ERROR['cuda']:.0%}", REPORT)
    return text


def two_processes(site: Site) -> Seen:
    """Two processes (two GPUs with NCCL, or gloo) learn as one does."""
    base, data = _tiny(site.directory)
    options = {"device": site.device.type, "quantization": {"compute_dtype": "float32"}}
    alone = _train(base, data, site.directory / "alone", **options)
    workdir = site.directory / "two"
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
        seen = f"exit code {done.returncode}: {done.stderr[-2000:].decode(errors='replace')}"
        raise CheckFailed(seen, "exit code 0", "look at nvidia-smi topo -m; NCCL_DEBUG=INFO names what NCCL cannot use")
    _expect_fall("two processes", losses, alone.losses)
    return f"{len(losses)} steps"


# The limits and that of the speed card are the thirty minutes of the command. On an 8B each takes less, by arithmetic.
CHECKS = (
    Check("offered memory (MIG)", machine_checks.offered_memory, 30),
    Check("TF32", machine_checks.tf32, 30),
    Check("attention", machine_checks.attention, 60),
    Check("planted defects", machine_checks.planted_defects, 60),
    Check("load and base check", model_checks.load, 150),
    Check("kernels x recomputation", model_checks.layouts, 150),
    Check("rows of 4,096 tokens", model_checks.long_rows, 180),
    Check("served reference", model_checks.reference, 120),
    Check("experts", experts, 90),
    Check("quantizations", quantizations, 120),
    Check("out of memory", out_of_memory, 60),
    Check("resume", resume, 60),
    Check("plans", plans, 120, needs_gpus=1),
    Check("slot budget", machine_checks.slot_budget, 30, needs_gpus=1),
    Check("two processes", two_processes, 90, needs_gpus=2),
)


def _expect_fall(what: str, losses: Sequence[float], expected: Sequence[float]) -> None:
    if problem := fall_problem(losses, expected):
        raise CheckFailed(f"{what}: {problem}", f"a fall within {MAX_FALL_DIFFERENCE:.0%} of it", REPORT)


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
        raise CheckFailed(f"exit code {code}: {log.last}", "exit code 0", "read the message")
    return log


def _in_float32(quantization: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if quantization is None else quantization | {"compute_dtype": "float32"}
