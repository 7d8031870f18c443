"""The execution plan of a run: the layout of its steps, chosen by the memory plan and the memory of this device. The
probe (probe.py) tests it.

Later attempts keep the plan of the first one. If the kernel killed an earlier attempt for memory, the plan assumes less
memory than the system reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from app.domain.jobs.events import Planned
from app.domain.jobs.spec import JobSpec, LoraSpec, TrainerSpec
from app.domain.planning import estimate
from app.domain.planning.adapter_size import adapter_bytes_per_token, trained_norm_bytes_per_token
from app.domain.planning.estimate import Device, Placement
from app.domain.planning.execution_plan import RECOMPUTE_TEXTS, Recompute
from app.domain.planning.memory import GRADIENT_BYTES, MOMENT_BYTES
from app.domain.planning.packing import Workload
from app.system.host import core_flops
from app.system.model_files import entry_of
from worker.trainer.distributed import parallel
from worker.trainer.kernels.cpu.memory import CpuMemory
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.activation_count import count_activations, count_without_adapter
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.runtime.device import device_name, dtype_name
from worker.trainer.training.state import Run

MEMORY_FACTOR_AFTER_KILL = 0.7  # of the reported free memory, for each kill by the kernel


def place(
    spec: TrainerSpec,
    base: FrozenBase,
    run: Run,
    max_row_tokens: int | None = None,
    activation_bytes: Mapping[Recompute, float] | None = None,
) -> Placement:
    """Plan the layout of the run on this device, and predict its memory and time.

    The base and the adapter must be loaded. `max_row_tokens` limits the length of packed batches. `activation_bytes`
    (`count_missing`) take the place of a catalog entry's that has none.
    """
    kernels = base.kernels
    memory = kernels.memory.measure()
    sharing_processes = parallel.world_size() if kernels.processes_share_memory else 1
    factor = MEMORY_FACTOR_AFTER_KILL**spec.out_of_memory_kills
    capacity = memory.used_bytes + int(memory.free_bytes / sharing_processes * factor)
    name, host_bytes = device_name(base.device), available_offload_bytes()
    device = Device(kernels.kind, name, capacity, torch.get_num_threads(), core_flops(), host_bytes=host_bytes)
    job = JobSpec(
        base_model=spec.base.name,
        method=run.spec.method,
        lora=run.spec.lora,
        quantization=spec.quantization,
        hyperparameters=run.spec.hyperparameters,
        seed=run.spec.seed,
    )
    validation_tokens = run.validation_dataset.tokens if run.validation_dataset else 0
    work = Workload.of(job, run.dataset.lengths(), run.dataset.labelled_tokens, validation_tokens)
    loaded = memory.used_bytes + unallocated_bytes(run)
    entry = entry_of(spec.base)
    if activation_bytes and not entry.activation_bytes:
        entry = entry.model_copy(update={"activation_bytes": dict(activation_bytes)})
    return estimate.estimate_placement(
        entry,
        job,
        work,
        device,
        spec.measurements,
        loaded,
        max_row_tokens,
        memory.counts_mapped_memory,
        kernels.is_fused,
        dtype_name(base.compute_dtype),
    )


def available_offload_bytes() -> int:
    """Return the free bytes of the host for this process's offload: the processes of a job share the host."""
    return CpuMemory().measure().free_bytes // parallel.world_size()


def count_missing(
    spec: TrainerSpec, base: FrozenBase, run: Run, recomputation: Recomputation
) -> dict[Recompute, float]:
    """Return `activation_bytes` of a catalog entry that has none; empty for another.

    The bytes per token in 16 bits, without the adapter's. They are those of registration if the adapter is plain.
    """
    entry = entry_of(spec.base)
    if entry.activation_bytes:
        return {}
    width, lora = base.compute_dtype.itemsize, run.spec.lora
    if is_plain(lora):
        return {mode: 2 / width * count for mode, count in count_without_adapter(base, recomputation).items()}
    kept_bytes = adapter_bytes_per_token(entry, lora, width, base.kernels.is_fused)
    adapter_bytes = dict.fromkeys(RECOMPUTE_TEXTS, kept_bytes)
    adapter_bytes["elementwise"] += trained_norm_bytes_per_token(entry, lora, width)
    counts = count_activations(base, run.adapter, recomputation)
    return {mode: 2 / width * max(0.0, count - adapter_bytes[mode]) for mode, count in counts.items()}


def is_plain(lora: LoraSpec) -> bool:
    """Return whether the adapter changes nothing about what the layers of the base keep."""
    return not (lora.dropout or lora.use_dora or lora.modules_to_save)


def planned(run: Run, placement: Placement, counted: Mapping[Recompute, float]) -> Planned:
    """Return the record of the plan, with the uncorrected predictions of the formula: later jobs correct those.

    `counted` are the activations that the catalog entry lacks.
    """
    return Planned(
        run_id=run.id,
        device_kind=placement.device.kind,
        device=placement.device.name,
        memory_bytes=placement.device.memory_bytes,
        mode=placement.plan,
        largest_row_tokens=placement.largest_batch_tokens,
        components=asdict(placement.memory),
        loaded_bytes=placement.formula.loaded,
        working_bytes=placement.formula.working,
        peak_bytes=placement.memory.total,
        step_flop=placement.step_flop,
        seconds=placement.seconds,
        basis=placement.basis,
        activation_bytes={**counted} if is_plain(run.spec.lora) else {},
    )


def unallocated_bytes(run: Run) -> int:
    """Return the bytes of the gradients and moments that the first step will allocate."""
    trained = sum(parameter.numel() for parameter in run.parameters)
    return trained * GRADIENT_BYTES + unallocated_moment_bytes(run)


def unallocated_moment_bytes(run: Run) -> int:
    """Return the bytes of AdamW's moments that the first step will allocate: none after a snapshot was restored."""
    return MOMENT_BYTES[run.spec.hyperparameters.optimizer] * sum(
        parameter.numel() for parameter in run.parameters if not run.optimizer.state.get(parameter)
    )
