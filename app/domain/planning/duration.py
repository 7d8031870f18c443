"""The duration of a job: the FLOP that it computes, divided by the FLOP/s that earlier jobs reached.

Letters as in `memory`: N parameters of the linear layers, P of the adapter, V the vocabulary, d and q widths, L layers.
Costs other than matrix products (kernel launches, dequantization, the optimizer) are converted to the FLOP that could
be computed in the same time. So the FLOP/s of one job also apply to jobs with other batch and document lengths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.methods import METHODS
from app.domain.planning.adapter_size import adapter_parameters
from app.domain.planning.execution_plan import SPARSE_LAYOUT, ExecutionPlan
from app.domain.planning.memory import DeviceKind
from app.domain.planning.packing import Workload

# The constant cost of a packed batch, in tokens: launches of some hundred operators per layer (cpu: a token in batches
# of 400 took 1.2 times as long as in batches of 1,519; cuda: of an 8B on an H100, where neither is known);
# dequantization of every weight twice: 11 % of a step at 2,048 tokens on an H100, 3 % at 1,519 on two cores.
LAUNCH_TOKENS: dict[DeviceKind, int] = {"cpu": 100, "cuda": 600}
DEQUANTIZE_TOKENS: dict[DeviceKind, int] = {"cpu": 50, "cuda": 250}
# Forward and backward of a layer with adapters in bfloat16 launch so many kernels (counted on a Llama layer), and a
# launch takes the CPU so long, with its share of Python and autograd. Products of experts are grouped: one launch for
# all of them, and each expert's tokens are rounded up to a tile of 128, by half of that on average.
LAYER_KERNELS = 218
KERNEL_SECONDS = 8e-6
GROUP_PADDING_TOKENS = 64
# Of a step with fused norms, gates and rope, and longer chunks of the loss: 674 of 794 ms for 8B on an H100, by sums.
FUSED_COST = 0.85
RECOMPUTE_COST = 0.45  # share of a step if every layer is recomputed: 2 of 4 N FLOP, without the head
# Recomputation of norms and activations: a few passes over the saved tensors, negligible on a CPU.
ELEMENTWISE_COST: dict[DeviceKind, float] = {"cpu": 0.01, "cuda": 0.03}
# The matrix products of attention are small, with a softmax between them: on two cores they take a fifth of a step with
# documents of 200 tokens, but a fifteenth of its FLOP.
ATTENTION_COST: dict[DeviceKind, float] = {"cpu": 3.0, "cuda": 1.0}
# Per trained parameter and step: clipping and AdamW took 30 ms for 4.9 million parameters on two cores.
OPTIMIZER_FLOP: dict[DeviceKind, float] = {"cpu": 1000.0, "cuda": 4000.0}
# bfloat16 FLOP/s of one core with AVX-512, and of a CPU whose flags are unknown; app.system.host refines it.
DEFAULT_CORE_FLOPS = 2e11
CUDA_FLOPS = 1e14  # of a GPU that is not in the table
# Dense bfloat16 peaks of the data sheets with float32 accumulation (before sm80: float16), by the words of the name
# without the vendor's; other words (memory, form) may follow. The longest entry applies.
PEAK_FLOPS = {
    "B300": 2.25e15,
    "GB300": 2.5e15,
    "B200": 2.25e15,
    "GB200": 2.5e15,
    "GH200": 9.9e14,
    "H200": 9.9e14,
    "H200 NVL": 8.35e14,
    "H100": 9.9e14,
    "H100 NVL": 8.35e14,
    "H100 PCIe": 7.56e14,
    "H800": 9.9e14,
    "H20": 1.48e14,
    "A100": 3.12e14,
    "A800": 3.12e14,
    "A40": 1.5e14,
    "A30": 1.65e14,
    "A10": 1.25e14,
    "A10G": 7e13,
    "L40S": 3.62e14,
    "L40": 1.81e14,
    "L4": 1.21e14,
    "RTX PRO 6000": 5.0e14,
    "RTX PRO 6000 Blackwell Max Q": 4.4e14,
    "RTX 6000 Ada": 3.64e14,
    "RTX A6000": 1.55e14,
    "RTX 5090": 2.1e14,
    "RTX 5080": 1.13e14,
    "RTX 4090": 1.65e14,
    "RTX 4080": 9.7e13,
    "RTX 3090": 7.1e13,
    "V100": 1.12e14,
    "T4": 6.5e13,
}
# Words in the names of GPUs before sm80, which have no fused kernels.
EARLIER_WORDS = frozenset({"V100", "T4", "P100", "P40", "P4", "GTX", "TITAN", "Quadro", "2060", "2070", "2080"})
VENDOR_WORDS = frozenset({"NVIDIA", "GeForce", "Tesla"})
PARTIAL_WORDS = frozenset({"Laptop", "MIG"})
# The assumed share of the peak until a job was measured. Large products reach 0.6 of the peak of an H100, which its
# power limits; 0.85 of an A100's, and nearly all of a GeForce card's, whose peak is halved with float32 accumulation.
UTILIZATION: dict[DeviceKind, float] = {"cpu": 0.6, "cuda": 0.4}
UTILIZATION_BY_GPU = dict.fromkeys(("A100", "A800", "RTX 5090", "RTX 5080", "RTX 4090", "RTX 4080", "RTX 3090"), 0.6)
REFERENCE_FLOPS = 0.4 * 9.9e14  # of an H100
# A tiled MLP runs forward once more in the backward of a recomputed layer: 0.8 of the layer's weights. Each chunk
# launches its kernels and dequantizes its weights again.
MLP_SHARE = 0.8
# Of a step: 8B on an H100 with 100,000 tokens copies 0.8 GB per layer in 33 ms each way, beside a second of products.
OFFLOAD_COST = 0.05
START_SECONDS = 10.0  # imports, loading the base, and the final verification
BASE_BYTES_PER_SECOND = 1e9


def relative_token_cost(
    decoder_layers: int,
    plan: ExecutionPlan,
    kind: DeviceKind,
    row_tokens: float,
    constant_tokens: float | None = None,
) -> float:
    """Time per token in batches of `row_tokens`, relative to an infinitely long batch without recomputation.

    `constant_tokens` are the constant cost of a batch; by default, on CUDA, that of an 8B on an H100.
    """
    if constant_tokens is None:
        constant_tokens = LAUNCH_TOKENS[kind] + (0 if plan.cache_weights else DEQUANTIZE_TOKENS[kind])
    layers, elementwise = max(1, decoder_layers), ELEMENTWISE_COST[kind]
    recompute_share = {
        "nothing": 0.0,
        "elementwise": elementwise,
        "layers": elementwise + (RECOMPUTE_COST - elementwise) * plan.recompute_layers / layers,
        "everything": RECOMPUTE_COST * (1 + (MLP_SHARE if plan.mlp_chunk_tokens else 0)),
    }[plan.recompute]
    chunks = max(1.0, row_tokens / plan.mlp_chunk_tokens) if plan.mlp_chunk_tokens else 1.0
    constant_tokens *= 1 + MLP_SHARE * (chunks - 1)
    share = (1 + recompute_share + (OFFLOAD_COST if plan.offload else 0)) * (FUSED_COST if plan.cuda_kernels else 1)
    return share * (1 + constant_tokens / row_tokens)


@dataclass(frozen=True)
class JobCost:
    """The FLOP of a job on a kind of device; on CUDA, on a GPU that computes `flops` a second by its name."""

    entry: CatalogEntry
    spec: JobSpec
    work: Workload
    kind: DeviceKind
    flops: float = REFERENCE_FLOPS

    def of_token(self, plan: ExecutionPlan, row_tokens: float) -> float:
        """`relative_token_cost` of this job.

        A batch on CUDA has the launches, the dequantization, and the padding of each expert's tokens. Dequantized
        experts are not cached.
        """
        entry = self.entry
        if self.kind == "cpu":
            return relative_token_cost(entry.decoder_layers, plan, self.kind, row_tokens)
        launches = entry.decoder_layers * LAYER_KERNELS * KERNEL_SECONDS * self.flops
        dequantized = entry.expert_parameters + (0 if plan.cache_weights else entry.linear_parameters)
        dequantization = 0 if self.spec.quantization is None else 4 * DEQUANTIZE_TOKENS[self.kind] * dequantized
        padding = 4 * GROUP_PADDING_TOKENS * entry.expert_parameters
        constant_tokens = (launches + dequantization + padding) / self._passes
        return relative_token_cost(entry.decoder_layers, plan, self.kind, row_tokens, constant_tokens)

    def of_step(self, plan: ExecutionPlan, row_tokens: float) -> float:
        """FLOP per training token, with `row_tokens` in a packed batch on average."""
        trained = adapter_parameters(self.entry, self.spec.layer_lora)
        optimizer = OPTIMIZER_FLOP[self.kind] * trained * self.work.steps / max(1, self.work.tokens)
        return self._passes * self.of_token(plan, row_tokens) + optimizer

    def of_validation(self, plan: ExecutionPlan) -> float:
        """FLOP per validation token, in full packed batches: one forward, and those of the method."""
        forward = (1 + self._extra_forwards) * self._forward
        forward += 2 * adapter_parameters(self.entry, self.spec.layer_lora)
        validation_plan = plan.model_copy(update={"recompute": "nothing", "recompute_layers": 0} | SPARSE_LAYOUT)
        return forward * self.of_token(validation_plan, plan.row_tokens)

    @cached_property
    def _passes(self) -> float:
        """FLOP per training token of products and attention, forward and backward."""
        entry, lora = self.entry, self.spec.layer_lora
        trained: float = adapter_parameters(entry, lora)
        if lora.adapts_experts:  # a token uses a part of the experts' adapters, too
            dense = adapter_parameters(entry.model_copy(update={"experts": {}}), lora)
            trained = dense + entry.active_experts * (trained - dense)
        passes = 4 * self._active_parameters + 6 * trained + 3 * self._attention + 4 * self._head
        return passes + self._extra_forwards * self._forward

    @property
    def _extra_forwards(self) -> int:
        return METHODS[self.spec.method].extra_forwards(self.spec.hyperparameters)

    @property
    def _forward(self) -> float:
        return 2 * self._active_parameters + 2 * self._head + self._attention

    @property
    def _active_parameters(self) -> float:
        """The weights of linear layers and experts that a token is multiplied with."""
        return self.entry.linear_parameters + self.entry.active_experts * self.entry.expert_parameters

    @property
    def _head(self) -> float:
        """The weights of the head, for the share of tokens that it is multiplied with."""
        return self.work.labelled_share * self.entry.vocab_size * self.entry.hidden_size

    @property
    def _attention(self) -> float:
        """FLOP per token of the two matrix products of attention in a forward, for documents of average length."""
        products = 4 * self.entry.query_size * self.work.mean_attended_tokens * self.entry.decoder_layers
        return ATTENTION_COST[self.kind] * products


def gpu_peak_flops(name: str) -> float | None:
    """The peak of a GPU by its exact name, as nvidia-smi or torch print it; None for an unknown one."""
    return PEAK_FLOPS.get(_known_gpu(name))


def gpu_flops(name: str) -> float | None:
    """The FLOP/s that a step is assumed to reach on a GPU with this name; None for an unknown one."""
    peak = gpu_peak_flops(name)
    return peak and peak * UTILIZATION_BY_GPU.get(_known_gpu(name), UTILIZATION["cuda"])


def has_fused_kernels(name: str) -> bool:
    """Whether a GPU has sm80 or newer by its name; an unknown one counts as newer."""
    return EARLIER_WORDS.isdisjoint(_words(name))


@lru_cache(maxsize=64)  # each plan of a job asks
def _known_gpu(name: str) -> str:
    """The entry of the table of peaks; empty for an unknown one.

    Laptop GPUs and MIG slices have the name of a faster GPU, so they count as unknown.
    """
    words = [word for word in _words(name) if word not in VENDOR_WORDS]
    matches = [gpu for gpu in PEAK_FLOPS if words[: len(gpu.split())] == gpu.split()]
    return "" if PARTIAL_WORDS & set(words) else max(matches, key=len, default="")


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", name.removeprefix("cuda ("))
