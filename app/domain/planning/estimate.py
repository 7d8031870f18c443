"""The plan of a job on a device: the execution plan with the shortest time that fits, its memory and its duration; and
the requirements of a job, from its validated data: memory for the claim, and duration for the forecast.

The API, the command line and the trainer use this one function. It estimates from shapes (`memory`, `duration`) and
corrects the estimates by the measurements of earlier jobs of the same kind.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.methods import METHODS
from app.domain.planning.duration import (
    BASE_BYTES_PER_SECOND,
    CUDA_FLOPS,
    DEFAULT_CORE_FLOPS,
    START_SECONDS,
    UTILIZATION,
    JobCost,
    gpu_flops,
    has_fused_kernels,
)
from app.domain.planning.execution_plan import ExecutionPlan, Measurement
from app.domain.planning.memory import (
    GATED_MLP_LAYERS,
    MAX_BLOCK_ATTENTION_TOKENS,
    DeviceKind,
    MemoryEstimate,
    compute_dtype_bytes,
    estimate_memory,
    hosted_embedding_bytes,
    offloaded_bytes,
)
from app.domain.planning.packing import Workload, largest_batch, max_attention_cost, mean_packed_length
from app.domain.units import duration_text

# Candidates for the tokens of a packed batch. Longer batches spread the cost of kernel launches and dequantization over
# more tokens; on a CPU 2,048 tokens were hardly faster than 1,024 and took 0.6 GB more for a model of 135M.
CANDIDATE_ROW_TOKENS: dict[DeviceKind, tuple[int, ...]] = {
    "cpu": (1024, 768, 512, 256, 128),
    "cuda": (8192, 6144, 4096, 3072, 2048, 1024, 512),
}
MLP_CHUNK_TOKENS = (4096, 1024, 512)  # the candidates besides 0; an 8B holds 0.9, 0.2 and 0.1 GB for so many
TIME_TOLERANCE = 0.012  # plans whose times differ by less count as equally fast; the smallest wins
# oneDNN compiles 30 to 44 kernels for each new batch length and maps more memory for them than it touches; it caches
# the last 128 kernels. Eight lengths took 854 MB of mapped memory and 640 MB of touched memory, which
# `estimate_memory` predicts (with 256 cached).
ONEDNN_MAPPING_OVERHEAD_BYTES = 26_000_000  # per batch length
MAX_CACHED_LENGTHS = 5  # 128 / 30, calculated, not measured
RECENCY = 0.7  # weight of a measured duration over that of the next newer job: the last two have half of all weight
USABLE_MEMORY_SHARE = 0.97  # of the available memory; the rest is a reserve for estimation errors


@dataclass(frozen=True)
class Device:
    """A device to train on, as a worker describes it or as the trainer detects it."""

    kind: DeviceKind
    name: str
    memory_bytes: int  # of the GPU; on a CPU the memory that the process may use
    cores: int = 1
    core_flops: float = DEFAULT_CORE_FLOPS  # FLOP/s of one CPU core, estimated from its flags
    host_bytes: int | None = None  # free memory of the host of a GPU, for offload; None: not known
    slots: int = 1  # jobs that share the GPU: `memory_bytes` is then the budget of one of them
    gpus: int = 1  # of a job, each with this memory

    @property
    def place(self) -> str:
        """Where a job runs, after "on" in a sentence: people who train on a CPU don't know its name."""
        if self.kind == "cpu":
            return "this machine"
        if self.gpus > 1:
            return f"{self.gpus} {self.name}"
        return self.name if self.slots == 1 else f"one of {self.slots} slots of {self.name}"

    @property
    def estimated_flops(self) -> float:
        """FLOP/s of all its GPUs before a job was measured: from its flags or its name."""
        if self.kind == "cpu":
            return UTILIZATION[self.kind] * self.cores * self.core_flops
        return self.gpus * (gpu_flops(self.name) or UTILIZATION[self.kind] * CUDA_FLOPS)


@dataclass(frozen=True)
class Correction:
    """What earlier jobs showed: measured / predicted memory, FLOP/s, seconds besides steps and validations.

    Medians; those of FLOP/s and seconds are weighted, so that they follow the present.
    """

    loaded: float = 1.0
    working: float = 1.0
    flops: float | None = None
    other_seconds: float | None = None
    jobs: int = 0

    @classmethod
    def of(
        cls, measurements: Sequence[Measurement], plan: ExecutionPlan, working_bytes: int, tokens: int
    ) -> Correction:
        """From jobs with the same device, base and quantization, the newest first, preferably with the same layout.

        Without a job of the same layout all jobs count, because the formulas have similar errors in all layouts. Only
        jobs of a similar size lower the estimated working memory.
        """
        same_layout = [each for each in measurements if each.has_layout_of(plan)]
        relevant = same_layout or measurements
        other_seconds = [each.other_seconds for each in measurements if each.other_seconds is not None]
        similar = [each.working_ratio for each in relevant if each.is_similar_in_size(working_bytes, tokens)]
        at_least_one = [max(1.0, each.working_ratio) for each in relevant]
        return cls(
            loaded=statistics.median([each.loaded_ratio for each in relevant] or [1.0]),
            working=statistics.median(similar or at_least_one or [1.0]),
            flops=_recent_median([each.flops for each in relevant if each.flops]),
            other_seconds=_recent_median(other_seconds),
            jobs=len(same_layout),
        )


@dataclass(frozen=True)
class Placement:
    """A job on one device: the fastest plan that fits, or the plan with the least memory."""

    device: Device
    fits: bool
    plan: ExecutionPlan
    memory: MemoryEstimate
    formula: MemoryEstimate  # before the correction; measurements are compared with it
    largest_batch_tokens: int
    step_flop: float  # per token
    seconds: float
    basis: Literal["formula", "measured"]
    lacking_host_bytes: int = 0  # that offload would take, and the host does not have

    @property
    def message(self) -> str:
        """The verdict in the first sentence: with the time, or with the memory that is missing and what to do."""
        if self.fits:
            return f"Fits. About {duration_text(self.seconds)} on {self.device.place}."
        remedy = "Lower hyperparameters.context_length first, then lora.r; without quantization, use 4 bits."
        if self.memory.process + self.memory.base > USABLE_MEMORY_SHARE * self.device.memory_bytes:
            remedy = "Choose a smaller base model or a worker with more memory; without quantization, use 4 bits."
        host = ""
        if self.lacking_host_bytes:
            needed, usable = _gigabytes(self.lacking_host_bytes), _usable(self.device.host_bytes or 0)
            host = f"Layer inputs and embedding would take {needed} of host memory, and may take {usable}. "
        required, usable = _gigabytes(self.memory.total), _usable(self.device.memory_bytes)
        place = f"each of {self.device.place}" if self.device.gpus > 1 else self.device.place
        return f"Does not fit. It needs at least {required} and may take {usable} on {place}. {host}{remedy}"

    @property
    def details(self) -> str:
        """The memory, the layout of a step, and how certain both are."""
        required, available = _gigabytes(self.memory.total), _gigabytes(self.device.memory_bytes)
        basis = "" if self.basis == "measured" else " Estimated from shapes: no such job has run here yet."
        return f"{required} of {available}, with {self.plan}.{basis}"


@dataclass(frozen=True)
class DeviceGroup:
    """A device, the number of workers that have it, and the measurements of earlier jobs on it.

    If several workers share a GPU, the device is the whole GPU, and `slots` and `slot_bytes` tell how it is divided.
    """

    device: Device
    workers: int
    measurements: Sequence[Measurement]
    slots: int = 1
    slot_bytes: int = 0


@dataclass(frozen=True)
class RequirementsEstimate:
    """The minimum memory that a job needs on each kind of device, and its duration on the fastest available device."""

    cpu_bytes: int
    cuda_bytes: int
    seconds: float | None  # None: no worker is running


def estimate_placement(
    entry: CatalogEntry,
    spec: JobSpec,
    work: Workload,
    device: Device,
    measurements: Sequence[Measurement] = (),
    loaded_bytes: int | None = None,
    max_row_tokens: int | None = None,
    counts_mapped_memory: bool = False,
    cuda_kernels: bool | None = None,
    compute_dtype: str = "",
) -> Placement:
    """The fastest plan that fits into the memory of `device`; if none fits, the one with the least memory.

    The trainer, which has loaded the base, passes the measured `loaded_bytes` instead of estimating them. It also
    passes whether a limit of its process counts memory that is mapped but never touched (`counts_mapped_memory`),
    whether its kernels are those for GPUs since sm80 (`cuda_kernels`; by default, by the name of the GPU; ignored on a
    CPU), and the `compute_dtype`.
    """
    cost = JobCost(entry, spec, work, device.kind, device.estimated_flops / device.gpus)
    candidate_row_tokens = _candidate_row_tokens(device, work.lengths.max_tokens, max_row_tokens)
    packed = {tokens: _packed_batches(spec, work, tokens) for tokens in candidate_row_tokens}
    placements, lacking_host_bytes = [], 0
    has_cuda_kernels = device.kind == "cuda" and (
        has_fused_kernels(device.name) if cuda_kernels is None else cuda_kernels
    )
    for plan in _candidates(entry, spec, device.kind, candidate_row_tokens, has_cuda_kernels, compute_dtype):
        largest_tokens, mean_tokens, max_attended_tokens = packed[plan.row_tokens]
        embedding_bytes = 0
        if plan.offload:
            width = compute_dtype_bytes(spec.quantization, plan)
            embedding_bytes = hosted_embedding_bytes(entry, spec.layer_lora, width)
            needed = embedding_bytes + offloaded_bytes(entry.hidden_size, entry.decoder_layers, width, largest_tokens)
            if device.host_bytes is not None and needed > USABLE_MEMORY_SHARE * device.host_bytes:
                lacking_host_bytes = min(needed, lacking_host_bytes or needed)
                continue
        formula = estimate_memory(
            entry,
            spec,
            plan,
            device.kind,
            largest_tokens,
            work.mean_attended_tokens,
            max_attended_tokens,
            _forward_tokens(spec, work),
        )
        correction = Correction.of(measurements, plan, formula.working, work.tokens)
        memory = _corrected(formula, correction, loaded_bytes, embedding_bytes)
        if counts_mapped_memory:
            lengths = min(MAX_CACHED_LENGTHS, work.tokens / mean_tokens)
            memory = replace(memory, kernels=memory.kernels + int(ONEDNN_MAPPING_OVERHEAD_BYTES * lengths))
        # Each GPU has its part of a step. One of them validates, and all run the probe, the largest batch once.
        if device.gpus > 1:
            mean_tokens = min(mean_tokens, max(1.0, work.tokens / max(1, work.steps) / device.gpus))
        flop_per_token = cost.of_step(plan, mean_tokens)
        flop = flop_per_token * (work.tokens + device.gpus * largest_tokens)
        flop += cost.of_validation(plan) * device.gpus * work.validated_tokens
        other_seconds = correction.other_seconds
        if other_seconds is None:
            other_seconds = START_SECONDS + memory.base / BASE_BYTES_PER_SECOND
        placements.append(
            Placement(
                device=device,
                fits=memory.total <= USABLE_MEMORY_SHARE * device.memory_bytes,
                plan=plan,
                memory=memory,
                formula=formula,
                largest_batch_tokens=largest_tokens,
                step_flop=flop_per_token,
                seconds=other_seconds + flop / (correction.flops or device.estimated_flops),
                basis="measured" if correction.jobs else "formula",
            )
        )
    if fitting := [each for each in placements if each.fits]:
        return _select(cost, fitting)
    smallest = min(placements, key=lambda each: (each.memory.total, each.memory.activations))
    return replace(smallest, lacking_host_bytes=lacking_host_bytes)


def estimate_on(entry: CatalogEntry, spec: JobSpec, work: Workload, group: DeviceGroup) -> Placement:
    """The plan within the budget of a slot, as the claim reserves it; on the whole device if the job fits no slot."""
    if group.slots > 1:
        host_bytes = group.device.host_bytes and group.device.host_bytes // group.slots
        slot = replace(group.device, memory_bytes=group.slot_bytes, slots=group.slots, host_bytes=host_bytes)
        placement = estimate_placement(entry, spec, work, slot, group.measurements)
        if placement.fits:
            return placement
    return estimate_placement(entry, spec, work, group.device, group.measurements)


def estimate_requirements(
    entry: CatalogEntry, spec: JobSpec, work: Workload, device_groups: Sequence[DeviceGroup]
) -> RequirementsEstimate:
    placements = [estimate_on(entry, spec, work, each) for each in device_groups]
    seconds = [each.seconds for each in placements if each.fits] or [each.seconds for each in placements]
    return RequirementsEstimate(
        cpu_bytes=_min_bytes(entry, spec, work, "cpu", device_groups),
        cuda_bytes=_min_bytes(entry, spec, work, "cuda", device_groups),
        seconds=min(seconds, default=None),
    )


def _min_bytes(
    entry: CatalogEntry, spec: JobSpec, work: Workload, kind: DeviceKind, device_groups: Sequence[DeviceGroup]
) -> int:
    """The memory of the smallest plan, which is selected if none fits; the minimum over the devices of a kind."""
    groups = [each for each in device_groups if each.device.kind == kind]
    groups = groups or [DeviceGroup(Device(kind, "", 0), workers=0, measurements=())]
    return min(
        estimate_placement(entry, spec, work, replace(each.device, memory_bytes=1), each.measurements).memory.total
        for each in groups
    )


def _select(cost: JobCost, placements: Sequence[Placement]) -> Placement:
    """The placement with the least memory among those that are equally fast within TIME_TOLERANCE."""
    costs = {each.plan: cost.of_token(each.plan, each.plan.row_tokens) for each in placements}
    bound = (1 + TIME_TOLERANCE) * min(costs.values())
    fastest = (each for each in placements if costs[each.plan] <= bound)
    return min(fastest, key=lambda each: (each.memory.total, costs[each.plan]))


def _candidate_row_tokens(device: Device, longest_tokens: int, max_row_tokens: int | None) -> list[int]:
    """At least the longest sequence, which would have a larger batch of its own anyway."""
    candidates = CANDIDATE_ROW_TOKENS[device.kind]
    upper = max_row_tokens or candidates[0]
    return sorted({max(longest_tokens, min(upper, tokens)) for tokens in candidates}, reverse=True)


def _packed_batches(spec: JobSpec, work: Workload, row_tokens: int) -> tuple[int, float, int]:
    """Of the packed batches with this maximum: the largest one's tokens, the mean tokens, and the length of a token's
    document, averaged over the batch in which it is largest."""
    data = (work.lengths, spec.hyperparameters, spec.seed, row_tokens)
    largest_tokens = largest_batch(*data)[1]
    attention_cost = max_attention_cost(*data, MAX_BLOCK_ATTENTION_TOKENS)
    return largest_tokens, max(1.0, mean_packed_length(*data)), attention_cost // max(1, largest_tokens)


def _forward_tokens(spec: JobSpec, work: Workload) -> int:
    """At most the tokens of KTO's longest mismatched document, the prompt of one example with the answer of another.

    0 for other methods: the forward passes of a reference have the batches of the steps.
    """
    if METHODS[spec.method].extra_forwards(spec.hyperparameters) < 2:
        return 0
    return min(spec.hyperparameters.context_length, 2 * work.lengths.max_tokens)


def _candidates(
    entry: CatalogEntry,
    spec: JobSpec,
    kind: DeviceKind,
    candidate_row_tokens: Sequence[int],
    cuda_kernels: bool,
    compute_dtype: str,
) -> Iterator[ExecutionPlan]:
    """Every combination of batch length, cached weights and recomputation; where every layer is recomputed, on CUDA
    with offload, too, and with chunks of the gated MLPs."""
    offloads = (False, True) if kind == "cuda" else (False,)
    can_tile = set(GATED_MLP_LAYERS) <= entry.target_modules.keys() and not entry.expert_parameters
    is_quantized = spec.quantization is not None
    for row_tokens in candidate_row_tokens:
        for is_cached in (True, False) if is_quantized else (False,):
            plan = ExecutionPlan(
                row_tokens=row_tokens,
                cache_weights=is_cached,
                cuda_kernels=cuda_kernels,
                compute_dtype=compute_dtype,
            )
            yield plan
            if not entry.can_recompute:
                continue
            yield plan.model_copy(update={"recompute": "elementwise"})
            for count in range(1, entry.decoder_layers):
                yield plan.model_copy(update={"recompute": "layers", "recompute_layers": count})
            chunks = [tokens for tokens in MLP_CHUNK_TOKENS if can_tile and tokens < row_tokens]
            for offload, chunk in product(offloads, [0, *chunks]):
                yield plan.model_copy(update={"recompute": "everything", "offload": offload, "mlp_chunk_tokens": chunk})


def _corrected(
    predicted: MemoryEstimate, correction: Correction, loaded_bytes: int | None, embedding_bytes: int
) -> MemoryEstimate:
    """The estimate scaled by measurements; `loaded_bytes` are without the cache, which the trainer fills later, and
    with the embedding, which the plan moves to host memory."""
    if loaded_bytes is None:
        return predicted.scaled(correction.loaded, correction.working)
    at_load = predicted.loaded - predicted.cache + embedding_bytes
    corrected = predicted.scaled(loaded_bytes / at_load, correction.working)
    return replace(corrected, cache=predicted.cache)


def _recent_median(values: Sequence[float]) -> float | None:
    """The weighted median of values, the newest first; None without values. Two recent ones outweigh all earlier ones,
    one does not."""
    weights = [RECENCY**age for age in range(len(values))]
    total = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        if total >= sum(weights) / 2:
            return value
    return None


def _usable(memory_bytes: int) -> str:
    usable = _gigabytes(int(USABLE_MEMORY_SHARE * memory_bytes))
    return f"{usable} ({USABLE_MEMORY_SHARE:.0%} of {_gigabytes(memory_bytes)})"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
