"""How much there is to compute in a job, and how fast it was seen to be computed: so how long it takes.

Letters as in memory: N parameters of the linear layers, P of the adapter, V the vocabulary, d and q widths,
L layers. What costs time without being a product (launches, dequantising, the optimizer's passes) is counted as the
FLOP that could have been done meanwhile, so that one number, the FLOP a second that earlier jobs reached, tells of jobs
with other rows, batches and lengths.
"""

from __future__ import annotations

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.execution_plan import ExecutionPlan
from app.domain.planning.memory import DeviceKind, adapter_parameters
from app.domain.planning.workload import Work

# A row costs as much as its tokens and so many more: launches of some hundred operators a layer (cpu: rows of 400
# tokens were seen to take 1.2 times as long a token as rows of 1,519); dequantising every weight twice, 11 % of a step
# at 2,048 tokens on an H100, 3 % at 1,519 on two cores.
LAUNCH_TOKENS: dict[DeviceKind, int] = {"cpu": 100, "cuda": 400}
DEQUANTISE_TOKENS: dict[DeviceKind, int] = {"cpu": 50, "cuda": 250}
RECOMPUTE_COST = 0.45  # of a step, when every layer runs its forward again: 2 of 4 N FLOP, without the head's
# Norms and activations made again: a few passes over what a layer keeps. On a CPU they are lost beside its products.
ELEMENTWISE_COST: dict[DeviceKind, float] = {"cpu": 0.01, "cuda": 0.03}
# Attention's products are narrow, and a softmax stands between them: on two cores a fifth of a step in documents of 200
# tokens, where they are a fifteenth of its FLOP.
ATTENTION_COST: dict[DeviceKind, float] = {"cpu": 3.0, "cuda": 1.0}
# Of a trained number, in each step: clipping and AdamW took 30 ms for 4.9 million on two cores.
OPTIMIZER_FLOP: dict[DeviceKind, float] = {"cpu": 1000.0, "cuda": 4000.0}
# bfloat16 FLOP/s of one core with AVX-512, and of a CPU whose flags are unknown; app.system.cpu_info refines it.
DEFAULT_CORE_FLOPS = 2e11
CUDA_FLOPS = 1e14  # of a card that is not in the table
# Dense bfloat16 (T4: float16) peaks of the data sheets; trained at such a part of it until something was measured.
PEAK_FLOPS = {"H200": 9.9e14, "H100": 9.9e14, "A100": 3.1e14, "4090": 1.65e14, "L4": 1.2e14, "A10": 7e13, "T4": 6.5e13}
REACHED: dict[DeviceKind, float] = {"cpu": 0.6, "cuda": 0.4}
START_SECONDS = 10.0  # imports, reading the base, and the last check
BASE_BYTES_PER_SECOND = 1e9


def cost(entry: CatalogEntry, plan: ExecutionPlan, kind: DeviceKind, row_tokens: float) -> float:
    """Time of a token in rows so long, as a multiple of that in an endless row with nothing recomputed."""
    extra = LAUNCH_TOKENS[kind] + (0 if plan.cache_weights else DEQUANTISE_TOKENS[kind])
    layers, elementwise = max(1, entry.decoder_layers), ELEMENTWISE_COST[kind]
    again = {
        "nothing": 0.0,
        "elementwise": elementwise,
        "layers": elementwise + (RECOMPUTE_COST - elementwise) * plan.recompute_layers / layers,
        "everything": RECOMPUTE_COST,
    }[plan.recompute]
    return (1 + again) * (1 + extra / row_tokens)


def step_flop(
    entry: CatalogEntry, spec: JobSpec, work: Work, plan: ExecutionPlan, kind: DeviceKind, row_tokens: float
) -> float:
    """Of a token on its way through the steps, in rows of `row_tokens` on average."""
    trained = adapter_parameters(entry, spec.layer_lora)
    passes = 4 * entry.linear_parameters + 6 * trained + 3 * _attention(entry, work, kind)
    passes += 4 * work.labelled_share * _head(entry)
    if spec.method == "dpo":  # the reference is another forward, without the adapter
        passes += _forward(entry, work, kind)
    optimizer = OPTIMIZER_FLOP[kind] * trained * work.steps / max(1, work.tokens)
    return passes * cost(entry, plan, kind, row_tokens) + optimizer


def validation_flop(entry: CatalogEntry, spec: JobSpec, work: Work, plan: ExecutionPlan, kind: DeviceKind) -> float:
    """Of a token of the validation file, whose rows are full: one forward, of DPO two."""
    forward = _forward(entry, work, kind) + 2 * adapter_parameters(entry, spec.layer_lora)
    if spec.method == "dpo":
        forward += _forward(entry, work, kind)
    kept = ExecutionPlan(row_tokens=plan.row_tokens, cache_weights=plan.cache_weights)
    return forward * cost(entry, kept, kind, plan.row_tokens)


def guessed_flops(kind: DeviceKind, name: str, cores: int, core_flops: float) -> float:
    """FLOP a second, before anything was measured."""
    if kind == "cpu":
        return REACHED[kind] * cores * core_flops
    return REACHED[kind] * next((flops for card, flops in PEAK_FLOPS.items() if card in name), CUDA_FLOPS)


def _forward(entry: CatalogEntry, work: Work, kind: DeviceKind) -> float:
    return 2 * entry.linear_parameters + 2 * work.labelled_share * _head(entry) + _attention(entry, work, kind)


def _head(entry: CatalogEntry) -> int:
    return entry.vocab_size * entry.hidden_size


def _attention(entry: CatalogEntry, work: Work, kind: DeviceKind) -> float:
    """Queries with keys, chances with values: forwards, of a token of a document of average length."""
    return ATTENTION_COST[kind] * 4 * entry.query_size * work.attended * entry.decoder_layers
