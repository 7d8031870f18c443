"""CPU autotuning: measure once whether float32 is faster than the default compute dtype.

Some processors have instructions for 16-bit matrix products, others emulate them. What the request names is not
measured. The result is part of the execution plan, so later attempts do not measure.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

import torch

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import RunSpec, TrainerSpec
from app.domain.planning import estimate
from app.domain.planning.estimate import Device, Placement
from app.domain.planning.execution_plan import ExecutionPlan
from app.domain.planning.packing import SequenceLengths, Workload
from app.system.model_files import entry_of
from worker.trainer.distributed import parallel
from worker.trainer.memory import device_memory
from worker.trainer.memory.placement import job_spec_of
from worker.trainer.runtime.device import device_name, times_float32, torch_dtype, with_compute_dtype
from worker.trainer.runtime.records import RecordWriter

# Time of a 16-bit product, in times of a float32 one, from which float32 is chosen: the other operations move twice as
# many bytes in float32.
MIN_TIMES_FLOAT32 = 1.5
MIN_PARAMETERS = 10_000_000  # of all linear layers: in a smaller model other operations take most of the time


def with_fastest_dtype(
    spec: TrainerSpec, workdir: Path, device: torch.device, default: ExecutionPlan, emit: RecordWriter
) -> ExecutionPlan:
    """Return the default plan, or the same in float32 where that is faster and fits. Errors are only logged."""
    is_free = spec.dtype_is_free and spec.quantization is not None and default.compute_dtype != "float32"
    if device.type != "cpu" or parallel.world_size() > 1 or not is_free:
        return default
    try:
        entry = entry_of(spec.base)
        return default if entry.linear_parameters < MIN_PARAMETERS else _faster(spec, workdir, entry, default, emit)
    except Exception:  # autotuning only saves time, so its errors must not fail the job
        traceback.print_exc(file=sys.stderr)
        print(f"CPU autotuning failed; training continues in {default.compute_dtype}.", file=sys.stderr)
        return default


def _faster(
    spec: TrainerSpec, workdir: Path, entry: CatalogEntry, default: ExecutionPlan, emit: RecordWriter
) -> ExecutionPlan:
    started = time.monotonic()
    times = times_float32(torch_dtype(default.compute_dtype))
    chosen, note = default.compute_dtype, ""
    if times >= MIN_TIMES_FLOAT32:
        if _float32_fits(spec, workdir, entry, default.compute_dtype):
            chosen = "float32"
        else:
            note = " float32 would be faster, but needs more memory than is free."
    text = (
        f"CPU autotuning: training in {chosen}. A matrix product in {default.compute_dtype} takes {times:.2f} times as "
        f"long as in float32 on this processor.{note}"
    )
    seconds = round(time.monotonic() - started, 3)
    emit.message(text, times_float32=round(times, 3), compute_dtype=chosen, seconds=seconds)
    return default.model_copy(update={"compute_dtype": chosen})


def _float32_fits(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, default_dtype: str) -> bool:
    """Return whether float32 fits into memory without more recomputation than the default dtype needs."""
    if spec.out_of_memory_kills:
        return False
    float32, default = (_placement(spec, workdir, entry, dtype) for dtype in ("float32", default_dtype))
    recompute, default_recompute = (
        (placement.plan.recompute, placement.plan.recompute_layers) for placement in (float32, default)
    )
    return float32.fits and recompute == default_recompute


def _placement(spec: TrainerSpec, workdir: Path, entry: CatalogEntry, dtype: str) -> Placement:
    """Plan the memory before any file is tokenized: every document counts with its maximum length."""
    longest, lengths = _max_document_tokens(spec.run, workdir), SequenceLengths()
    for _ in range(spec.run.hyperparameters.batch_size):
        lengths.add([longest])
    job = job_spec_of(with_compute_dtype(spec, dtype), spec.run)
    cpu = torch.device("cpu")
    device = Device("cpu", device_name(cpu), device_memory.measure(cpu).capacity_bytes, torch.get_num_threads())
    return estimate.estimate_placement(entry, job, Workload.of(job, lengths), device, spec.measurements)


def _max_document_tokens(run: RunSpec, workdir: Path) -> int:
    """Return an upper bound: a token has at least one byte, usually four, so this also covers the chat template."""
    with (workdir / run.training_file).open("rb") as lines:
        longest_bytes = max(map(len, lines), default=0)
    documents = 2 if run.method == "dpo" else 1
    return max(1, documents * min(run.hyperparameters.context_length, longest_bytes))
