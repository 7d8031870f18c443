"""How the steps are laid out in memory, planned from what there is. The probe (probe.py) then tries it.

A later attempt keeps what the first one decided. Where the kernel killed an earlier attempt for memory, it reckons with
less than there seems to be.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from app.domain.jobs.events import Planned
from app.domain.jobs.spec import JobSpec, RunSpec, TrainerSpec
from app.domain.planning import estimate
from app.domain.planning.estimate import Device, Placement
from app.domain.planning.memory import DeviceKind
from app.domain.planning.workload import Work
from app.system.cpu_info import core_flops
from app.system.model_files import read_catalog_entry
from worker.trainer.distributed import parallel
from worker.trainer.memory import device_memory
from worker.trainer.model.base_model import Base
from worker.trainer.runtime.device import device_name
from worker.trainer.state import Run

AFTER_A_KILL = 0.7  # of the memory that seemed free, for each time the kernel disagreed
GRADIENT_BYTES, MOMENT_BYTES = 4, 8  # of a trained number; beside its master's they make OPTIMIZER_BYTES


def place(spec: TrainerSpec, base: Base, run: Run, most_row_tokens: int | None = None) -> Placement:
    """Plan the layout of the run on this device, and what it should take. The base and the adapter are loaded."""
    space = device_memory.measure(base.device)
    sharers = parallel.world_size() if base.device.type == "cpu" else 1  # each has a GPU of its own
    capacity = space.used_bytes + int(space.free_bytes / sharers * AFTER_A_KILL**spec.out_of_memory_kills)
    device = _device(base, capacity)
    job = as_job(spec, run.spec)
    validation_tokens = run.validation_dataset.tokens if run.validation_dataset else 0
    work = Work.of(job, run.dataset.lengths(), run.dataset.labelled_tokens, validation_tokens)
    loaded = space.used_bytes + bytes_to_come(run)
    entry = read_catalog_entry(spec.base.directory)
    return estimate.place(entry, job, work, device, spec.measurements, loaded, most_row_tokens, space.counts_mapped)


def planned(run: Run, placement: Placement) -> Planned:
    """Return the record: what was predicted, and what the formula alone predicts, which is what gets corrected."""
    return Planned(
        run_id=run.id,
        device_kind=placement.device.kind,
        device=placement.device.name,
        memory_bytes=placement.device.memory_bytes,
        mode=placement.plan,
        largest_row_tokens=placement.largest_row,
        components=asdict(placement.memory),
        loaded_bytes=placement.formula.loaded,
        working_bytes=placement.formula.working,
        peak_bytes=placement.memory.total,
        step_flop=placement.step_flop,
        seconds=placement.seconds,
        basis=placement.basis,
    )


def bytes_to_come(run: Run) -> int:
    """Return the bytes of the gradients and moments that are not in memory yet."""
    trained = sum(parameter.numel() for parameter in run.parameters)
    return trained * GRADIENT_BYTES + moment_bytes_to_come(run)


def moment_bytes_to_come(run: Run) -> int:
    """Return the bytes of AdamW's moments: the first step makes them, unless a snapshot has brought them."""
    return MOMENT_BYTES * sum(
        parameter.numel() for parameter in run.parameters if not run.optimizer.state.get(parameter)
    )


def _device(base: Base, capacity_bytes: int) -> Device:
    kind: DeviceKind = "cuda" if base.device.type == "cuda" else "cpu"
    return Device(kind, device_name(base.device), capacity_bytes, torch.get_num_threads(), core_flops())


def as_job(spec: TrainerSpec, run: RunSpec) -> JobSpec:
    """Return the run as the estimate takes it."""
    return JobSpec(
        base_model=spec.base.name,
        method=run.method,
        lora=run.lora,
        quantization=spec.quantization,
        hyperparameters=run.hyperparameters,
        seed=run.seed,
    )
