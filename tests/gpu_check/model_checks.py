"""The checks on the base model of `--model`: load, margins, gradients in every layout, reference, long rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM

from app.domain.deliveries.served_check import MIN_NOISE, SAME_NOISES
from app.domain.jobs.events import Measured, Metric, Planned, Probed
from app.domain.jobs.spec import QuantizationSpec, TrainerSpec
from app.domain.planning.duration import gpu_peak_flops
from app.domain.planning.execution_plan import ExecutionPlan, Recompute
from app.system.host import core_flops
from app.system.model_files import read_catalog_entry, weight_files
from app.system.tokenizer_files import load_renderer
from tests.gpu_check.check import REPORT, CheckFailed, Seen, Site, threads_of
from tests.gpu_check.machine_checks import margin_texts
from tests.tiny import make_tiny_dataset
from tests.trainer.helpers import make_spec, no_keepalive, run_trainer
from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, uncompiled
from tests.trainer.model.bases import make_base
from worker.trainer.data.batch import PackedBatch
from worker.trainer.kernels.compiled import compiled_norm
from worker.trainer.kernels.kernels import Kernels, choose_kernels
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy
from worker.trainer.memory.probe import largest_planned_batch
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import FrozenBase, load_base
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.device import choose_compute_dtype, device_name
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.training import run as program
from worker.trainer.training.state import Run
from worker.trainer.validation.served_reference import measure_reference

NF4 = QuantizationSpec()
EXACT = "float32"  # the variant that the others are compared with
FORMATS: dict[str, QuantizationSpec | None] = {"16 bits": None, "NF4": NF4}
MIN_LOAD_BYTES_PER_SECOND = 2.4e8  # the weights of a 70B (141 GB) then take the ten minutes of a stalled job
LARGE_MODEL_BYTES = 1e9  # of a smaller one the construction takes longer than the files
# Plain, a part of each head rotated, state between tokens. On a CPU the model is a Llama, and the delta rule is slow.
TINY_BASES = {"cuda": ("Llama 3", "Phi-4-mini", "Qwen3.5 text"), "cpu": ("Phi-4-mini",)}
ALL_FUSED = "LlamaForCausalLM"  # the architecture of which every function has a fused one
FUSED_KINDS = {"norms", "gated MLPs", "rotary embeddings"}
MLP_CHUNK_TOKENS, DROPOUT = 64, 0.1
LAYOUT_TOKENS, LAYOUT_EXAMPLES = 1024, {"cpu": 3, "cuda": 8}
# Of the norm of all gradients: plain kernels repeat to the bit on a CPU; on CUDA attention adds gradients in varying
# order, fused kernels recompute other roundings, and MLPs in chunks round the adapter's gradients of each chunk.
# Fused kernels may be a little farther from the gradients of float32 than plain ones.
MAX_DIFFERENCE = 2e-2
MAX_ERROR_RATIO, MIN_ALLOWED_ERROR = 1.5, 1e-4
LONG_ROW_TOKENS, LONG_ROWS_OF_A_STEP, WARM_STEPS = 4096, 2, 3
LONG_STEPS = {"cpu": 4, "cuda": 10}
# Of the measured memory. On a CPU a tiny model is nearly all Python, whose size is assumed; `make bench-plan` is exact.
MAX_PLAN_ERROR = {"cpu": 0.5, "cuda": 0.15}
TEXTS = Path(__file__).parents[2] / "benchmarks/gsm8k-512.jsonl"


def load(site: Site) -> Seen:
    """Load the base in 16 bits and in NF4, and check it as a job does. The margins are those of that check."""
    size_bytes = sum(path.stat().st_size for path in weight_files(site.model))
    seen: dict[str, float | str] = {"files GB": size_bytes / 1e9}
    for name, quantization in FORMATS.items():
        started = time.monotonic()
        base = _load(site, site.model, quantization, choose_kernels(site.device, site.is_cuda))
        base.kernels.synchronize()
        seconds = time.monotonic() - started
        rate = size_bytes / seconds
        if size_bytes > LARGE_MODEL_BYTES and rate < MIN_LOAD_BYTES_PER_SECOND:
            allowed = f"{MIN_LOAD_BYTES_PER_SECOND / 1e9:.2f} GB/s and more"
            raise CheckFailed(f"{name}: {rate / 1e9:.2f} GB/s", allowed, "put TUNERY_MODELS_DIR on a local disk")
        started = time.monotonic()
        try:
            check_base(base)
        except Failure as error:
            allowed = "; ".join(f"{key}: {text}" for key, text in margin_texts(base.margins).items()) or "no problem"
            raise CheckFailed(f"{name}: {error}", allowed, "train another base, or another compute_dtype") from error
        seen |= {f"{name} s": seconds, f"{name} GB/s": rate / 1e9, f"{name} check s": time.monotonic() - started}
        seen |= {f"{name} {key}": text for key, text in margin_texts(base.margins).items()}
        base.patches.undo()
        del base
        choose_kernels(site.device).memory.free()
    return seen


def layouts(site: Site) -> Seen:
    """Every kernel in every mode of recomputation has the gradients of the mode that keeps everything.

    Fused kernels are as near to the gradients of float32 as transformers' own functions. On the model and tiny ones.
    """
    bases = {site.model.name: site.model}
    bases |= {name: make_base(name, site.directory / name) for name in TINY_BASES[site.device.type]}
    seen: dict[str, float | str] = {}
    for base_name, directory in bases.items():
        exact = plain_error = None
        for variant in kernel_variants(site.device):
            firsts: dict[float, torch.Tensor] = {}  # by the rate of dropout
            count, largest = 0, 0.0
            for plan, dropout, gradient in _gradients(site, directory, variant):
                if gradient is None:
                    seen[f"{base_name}, {variant.name}, no memory for"] = str(plan)
                    continue
                count += 1
                difference = _distance(gradient, firsts.setdefault(dropout, gradient))
                largest = max(largest, difference)
                is_exact = not (site.is_cuda or variant.kernels.is_fused or plan.mlp_chunk_tokens)
                allowed = 0.0 if is_exact else MAX_DIFFERENCE
                if not difference <= allowed:
                    where = f"{base_name}, {variant.name}, {plan}"
                    raise CheckFailed(f"{where}: gradients differ by {difference:.1e}", f"{allowed:.0e}", REPORT)
            if exact is None or not firsts:
                exact = firsts.get(DROPOUT)
                continue
            error = _distance(firsts[DROPOUT], exact)
            plain_error = error if plain_error is None else plain_error
            allowed_error = max(MIN_ALLOWED_ERROR, MAX_ERROR_RATIO * plain_error)
            if not error <= allowed_error:
                remedy = f"set TUNERY_CUDA_KERNELS=false; {REPORT}"
                seen_error = f"{base_name}, {variant.name}: gradients {error:.1e} from those of float32"
                raise CheckFailed(seen_error, f"{allowed_error:.1e}", remedy)
            text = f"{count} layouts within {largest:.1e}, {error:.1e} from float32"
            seen[f"{base_name}, {variant.name}"] = text
    return seen


@dataclass(frozen=True)
class Variant:
    """Kernels in a dtype."""

    name: str
    kernels: Kernels
    dtype: torch.dtype


def kernel_variants(device: torch.device) -> Iterator[Variant]:
    """Yield what `Kernels` offers on this device: float32, to compare with, then the plain ones, then the others."""
    dtype, plain = choose_compute_dtype(None, device), choose_kernels(device, False)
    yield Variant(EXACT, plain, torch.float32)
    yield Variant("plain kernels", plain, dtype)
    fused = choose_kernels(device, True) if device.type == "cuda" else FUSED_ON_CPU
    if fused.is_fused:  # from sm80 on
        yield Variant("fused kernels", fused, dtype)


def plans() -> Iterator[tuple[ExecutionPlan, float]]:
    """Yield the layouts that a plan can have, each with the rate of dropout; the first of each rate keeps everything.

    MLPs in chunks have none: their masks are drawn chunk by chunk.
    """
    for recompute, caches in product(get_args(Recompute), (False, True)):
        plan = ExecutionPlan(row_tokens=LAYOUT_TOKENS, recompute=recompute, cache_weights=caches)
        yield plan.model_copy(update={"recompute_layers": 1 if recompute == "layers" else 0}), DROPOUT
    yield plan.model_copy(update={"cache_weights": False, "offload": True}), DROPOUT
    yield ExecutionPlan(row_tokens=LAYOUT_TOKENS), 0.0
    for offload in (False, True):
        changes = {"cache_weights": False, "offload": offload, "mlp_chunk_tokens": MLP_CHUNK_TOKENS}
        yield plan.model_copy(update=changes), 0.0


def _gradients(
    site: Site, directory: Path, variant: Variant
) -> Iterator[tuple[ExecutionPlan, float, torch.Tensor | None]]:
    """Yield each layout with its dropout and its gradients, as one vector; None where memory was too small."""
    examples, kernels = LAYOUT_EXAMPLES[site.device.type], variant.kernels
    data = without_template(make_tiny_dataset(site.directory / "rows.jsonl", examples), site.directory)
    spec = _spec(site, directory, data, dropout=DROPOUT, context_length=256, batch_size=examples)
    with Patches() as patches:
        if not site.is_cuda:  # the C++ compiler takes a minute; here only the functions are checked
            patches.put_attribute(torch, "compile", uncompiled)
            compiled_norm.cache_clear()
        base = load_base("model", directory, NF4, variant.dtype, kernels)
        _check_fused(base)
        run = _new_run(base, spec, site.directory)
        objective, recomputation = program.make_objective(base, run), Recomputation(base)
        batch = largest_planned_batch(run, LAYOUT_TOKENS)
        assert batch is not None
        for plan, run.adapter.dropout in plans():
            if plan.recompute not in ("layers", "everything") or recomputation.layers:
                OutOfMemoryPolicy(plan, base, recomputation, RecordWriter(lambda _: None, spec.run))
                yield plan, run.adapter.dropout, _gradient(objective, run, batch.to(site.device))
            if variant.name == EXACT:
                break
        base.patches.undo()
    compiled_norm.cache_clear()
    del base, run, objective, recomputation
    kernels.memory.free()


def _check_fused(base: FrozenBase) -> None:
    """Raises CheckFailed if a function of transformers stays that a fused one should replace."""
    if not base.kernels.is_fused:
        return
    kinds = FUSED_KINDS if type(base.model).__name__ == ALL_FUSED else set()
    if base.fused_problem or (missing := kinds - base.fused_modules.keys()):
        seen = base.fused_problem or f"transformers' own {', '.join(sorted(missing))} stay: the fused ones differ"
        raise CheckFailed(
            seen, "compiled functions that equal them", f"install a C compiler, as Dockerfile.gpu; {REPORT}"
        )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _gradient(objective: Any, run: Run, batch: PackedBatch) -> torch.Tensor | None:
    state, found = run.adapter.generator.get_state(), None
    with SuppressOutOfMemory():
        objective.forward_backward(batch)
        found = torch.cat([parameter.grad.float().flatten() for parameter in run.parameters])
    run.adapter.generator.set_state(state)
    run.clear_gradients()
    return found


def reference(site: Site) -> Seen:
    """What an engine must compute, beside transformers with the same weights: the check of every delivery."""
    data = without_template(make_tiny_dataset(site.directory / "data.jsonl", 8), site.directory)
    spec = _spec(site, site.model, data, context_length=256)
    base = _load(site, site.model, NF4, choose_kernels(site.device, site.is_cuda))
    run = _new_run(base, spec, site.directory)
    started = time.monotonic()
    recorded = measure_reference(base, run, load_renderer(site.model), LAYOUT_TOKENS, no_keepalive)
    seconds = time.monotonic() - started
    if recorded is None:
        return "not recorded: the base has quantized experts"
    base.patches.undo()
    del base, run
    choose_kernels(site.device).memory.free()
    dtype = getattr(torch, recorded.dtype)
    model = AutoModelForCausalLM.from_pretrained(site.model, dtype=dtype).to(site.device).eval()
    differences = []
    with torch.no_grad():
        for prompt in recorded.prompts:
            logits_T_V = model(torch.tensor([prompt.tokens], device=site.device)).logits[0].float()
            logps_T_V = logits_T_V.log_softmax(-1).cpu()
            expected = [float(logps_T_V[each - 1, prompt.tokens[each]]) for each in prompt.positions]
            differences += [abs(one - two) for one, two in zip(prompt.base, expected, strict=True)]
    difference, allowed = sum(differences) / len(differences), SAME_NOISES * max(recorded.noise, MIN_NOISE)
    if not difference <= allowed:
        seen = f"{difference:.2g} nats from transformers in {recorded.dtype}"
        raise CheckFailed(seen, f"{allowed:.2g}", f"{REPORT}: deliveries would be refused, or wrong ones accepted")
    return {
        "s": seconds,
        "nats from transformers": difference,
        "allowed": allowed,
        "noise": recorded.noise,
        "effect": recorded.effect,
        "tokens": len(differences),
    }


def long_rows(site: Site) -> Seen:
    """Train on rows of 4,096 tokens in 16 bits and NF4: tokens a second, share of the peak, plan beside memory."""
    entry = read_catalog_entry(site.model)
    tokens = min(LONG_ROW_TOKENS, entry.context_length)
    data = _long_texts(site, tokens, LONG_ROWS_OF_A_STEP * LONG_STEPS[site.device.type])
    flop = flop_per_token(site.model)
    seen: dict[str, float | str] = {"row tokens": tokens}
    for name, quantization in FORMATS.items():
        spec = _spec(
            site,
            site.model,
            data,
            quantization=quantization,
            context_length=tokens,
            batch_size=LONG_ROWS_OF_A_STEP,
            learning_rate=1e-4,
            n_epochs=1,
            cuda_kernels=site.is_cuda,
            r=16,
            alpha=32,
        )
        code, log = run_trainer(spec, site.directory / name)
        if code:
            remedy = "read the message; TUNERY_CUDA_KERNELS=false tells whether a fused kernel is the cause"
            raise CheckFailed(f"{name}: exit code {code}: {log.last}", "exit code 0", remedy)
        (plan,), (measured,) = log.of(Planned), log.of(Measured)
        rates = sorted(metric.tokens_per_second for metric in log.of(Metric)[WARM_STEPS:])
        rate = rates[len(rates) // 2]
        seen |= {f"{name} tokens/s": rate, f"{name} MFU": mfu(rate, flop, site.device) or "peak unknown"}
        seen |= {f"{name} plan": str(plan.mode), f"{name} peak GB": measured.peak_bytes / 1e9}
        seen |= _plan_errors(name, site, plan, log.of(Probed), measured)
    return seen


def _plan_errors(
    name: str, site: Site, plan: Planned, probes: Sequence[Probed], measured: Measured
) -> dict[str, float | str]:
    """Compare the peak; on a GPU the working memory, too, which on a CPU the C heap of a small model hides."""
    errors = {"peak over measured": plan.peak_bytes / measured.peak_bytes - 1}
    if site.is_cuda and probes:
        errors["working over measured"] = working_error(plan, probes[-1])
    if max(map(abs, errors.values())) > MAX_PLAN_ERROR[site.device.type]:
        text = ", ".join(f"{what} {error:+.0%}" for what, error in errors.items())
        remedy = f"{REPORT}; a plan that is too small ends in repeated steps, one that is too large in refusals"
        raise CheckFailed(f"{name}: planned {text}", f"{MAX_PLAN_ERROR[site.device.type]:.0%}", remedy)
    return {f"{name} planned {what}": f"{error:+.1%}" for what, error in errors.items()}


def working_error(planned: Planned, probed: Probed) -> float:
    """Compare what a step allocates above the loaded model: the CUDA context and the base hide an error of the peak."""
    return planned.working_bytes / (probed.peak_bytes - probed.loaded_bytes) - 1


def flop_per_token(model: Path) -> float:
    """Forward, and backward to the inputs, of every weight that a token meets, the head's included."""
    entry = read_catalog_entry(model)
    weights = entry.linear_parameters + entry.active_experts * entry.expert_parameters
    return 4 * (weights + entry.vocab_size * entry.hidden_size)


def mfu(tokens_per_second: float, flop: float, device: torch.device) -> float | None:
    """The share of the device's peak in 16 bits; None for a GPU whose peak is not known."""
    peak = gpu_peak_flops(device_name(device)) if device.type == "cuda" else core_flops() * threads_of(device)
    return tokens_per_second * flop / peak if peak else None


def _load(site: Site, directory: Path, quantization: QuantizationSpec | None, kernels: Kernels) -> FrozenBase:
    return load_base("model", directory, quantization, choose_compute_dtype(None, site.device), kernels)


def _spec(site: Site, base: Path, data: Path, *, cuda_kernels: bool = False, **changes: Any) -> TrainerSpec:
    targets = sorted(read_catalog_entry(base).target_modules)
    options = {
        "device": site.device.type,
        "threads": threads_of(site.device),
        "dtype_is_free": True,
        "target_modules": targets,
    }
    return make_spec(base, data, **options | changes).model_copy(update={"cuda_kernels": cuda_kernels})


def _new_run(base: FrozenBase, spec: TrainerSpec, directory: Path) -> Run:
    """Return a run whose adapter has an effect: B is not zero."""
    run = program.new_run(spec.run, directory, base, load_renderer(spec.base.directory), {}, no_keepalive)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in run.adapter.named_parameters().items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return run


def without_template(data: Path, directory: Path) -> Path:
    """Return the rows as prompt and completion, for base models that have no chat template."""
    rows = [json.loads(line)["messages"] for line in data.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": row[0]["content"], "completion": row[-1]["content"]} for row in rows]
    path = directory / f"{data.stem}-plain.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def _long_texts(site: Site, tokens: int, rows: int) -> Path:
    """Write texts of so many tokens, at most a few fewer: their ends may merge with other tokens."""
    tokenizer = load_renderer(site.model).tokenizer
    ids = tokenizer.encode(TEXTS.read_text(encoding="utf-8"), add_special_tokens=False).ids
    ids = (ids * (1 + tokens * rows // len(ids)))[: tokens * rows]
    texts = [tokenizer.decode(ids[start : start + tokens - 16]) for start in range(0, tokens * rows, tokens)]
    path = site.directory / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
