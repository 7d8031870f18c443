"""Data-parallel training: each process takes some of a step's examples, sums are all-reduced, all make the same step.

    examples of a step | 0 3 4 7 | 1 2 5 6 |      the examples of each process, about equal in tokens
    sums               |   sum   |   sum   |      of gradients, losses, counts, tokens: all-reduced
    division           |  the same in every process: W equal copies of one adapter

The number of processes changes the result only by the rounding of sums. The first process decides, saves and reports;
the others follow its decisions, and take part in evaluations (training/shared_work.py). With one process, these
functions change nothing.

Letters: W processes, P trained parameters.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from app.domain.jobs.states import ExitCode, Reason
from worker.trainer.adapter.lora import LoraAdapter
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.runtime.failures import Failure, is_device_lost, is_out_of_memory

T = TypeVar("T")

# The others wait while the first saves files. The death of a process ends them immediately, without a timeout.
COLLECTIVE_TIMEOUT = timedelta(hours=4)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def join(device: str) -> None:
    """Join the process group of torchrun's environment; on CUDA, one process per GPU.

    Raises Failure: DEVICE_LOST for too few GPUs, OUT_OF_MEMORY if NCCL's buffers do not fit.
    """
    if device == "cpu" or not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
        return
    if (processes := int(os.environ["LOCAL_WORLD_SIZE"])) > torch.cuda.device_count():
        text = (
            f"This worker trains each job on {processes} GPUs, but torch finds {torch.cuda.device_count()}. The "
            "operator can lower TUNERY_GPUS_PER_JOB or make more GPUs visible to the worker."
        )
        raise Failure(Reason.DEVICE_LOST, text)
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=COLLECTIVE_TIMEOUT)
    try:  # NCCL allocates its buffers in the first collective, and the memory plan measures what is left
        dist.all_reduce(torch.zeros(1).cuda())
        torch.cuda.synchronize()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = "NCCL's buffers do not fit into the memory of a GPU. Free memory on the GPUs, or train on one of them."
        raise Failure(Reason.OUT_OF_MEMORY, text) from error


def leave() -> None:
    """Leave the group after all processes have arrived: an earlier exit would interrupt the last collective."""
    _run_collective(dist.barrier)
    dist.destroy_process_group()


def own_examples(examples: Sequence[int], tokens: Callable[[int], int]) -> list[int]:
    """Return this process's examples of a step, in the order of the step.

    The examples are assigned by falling length, each to the process with the fewest tokens.
    """
    if world_size() == 1:
        return list(examples)
    loads = [0] * world_size()
    own = set()
    for index in sorted(range(len(examples)), key=lambda index: (-tokens(examples[index]), index)):
        lightest = min(range(world_size()), key=lambda process: (loads[process], process))
        loads[lightest] += tokens(examples[index])
        if lightest == rank():
            own.add(index)
    return [example for index, example in enumerate(examples) if index in own]


@contextmanager
def out_of_memory_in_all() -> Iterator[None]:
    """If the block runs out of memory in one process, raise an out-of-memory error in every process.

    Then all repeat the same work. Otherwise one would repeat it while the others wait for it in the next collective.
    """
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        if not is_out_of_memory(raised):
            raise
        error = raised
    has_failed = torch.tensor([error is not None], dtype=torch.uint8)  # on the CPU, so by gloo
    _run_collective(dist.all_reduce, has_failed, dist.ReduceOp.MAX)
    if has_failed.item():
        raise error or MemoryError("out of memory in another process of this job")


def flatten_sums(parameters: Sequence[torch.nn.Parameter], metrics: StepMetrics) -> list[torch.Tensor]:
    """Return the tensors to all-reduce: all gradients as one tensor (P), and the metrics. Empty with one process.

    The gradients become views of that tensor, so that `all_reduce_sums` allocates nothing.
    """
    if world_size() == 1:
        return []
    # A process that had no example of the step has no gradients.
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    gradient_P = torch.cat([gradient.reshape(-1) for gradient in gradients])
    parts = torch.split(gradient_P, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return [gradient_P, metrics.sums()]


def all_reduce_sums(sums: Sequence[torch.Tensor], metrics: StepMetrics) -> None:
    """Replace the sums over this process's examples (`flatten_sums`) by the sums over those of all processes."""
    for tensor in sums:
        add(tensor)
    if sums:
        metrics.set_sums(sums[-1])


def add(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of the tensors of all processes."""
    _run_collective(dist.all_reduce, tensor)
    return tensor


def broadcast(value: T) -> T:
    """Return the value of the first process, in every process."""
    values = [value]
    _run_collective(dist.broadcast_object_list, values, src=0)
    return values[0]


@dataclass(frozen=True)
class _Decided:
    value: Any


def lead(decide: Callable[[], T], take_part: Callable[[Any], None]) -> T:
    """Return what `decide` returns in the first process, in every process.

    Until then the others wait in `take_part(task)` for each task that `decide` broadcasts, and do their part of it.
    """
    task = broadcast(_Decided(decide())) if is_first() else broadcast(None)
    while not isinstance(task, _Decided):
        take_part(task)
        task = broadcast(None)
    value: T = task.value
    return value


@torch.no_grad()
def copy_to_all(tensors: Sequence[torch.Tensor]) -> None:
    """Replace the tensors by those of the first process."""
    for tensor in tensors:
        _run_collective(dist.broadcast, tensor, src=0)


def gather(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    values = [value] * world_size()
    _run_collective(dist.all_gather_object, values, value)
    return values


def own_seed(seed: int) -> int:
    """Return the seed of this process's dropout masks. Those of the first are the masks of a run with one process."""
    return random.Random(f"{seed}/{rank()}").getrandbits(32) if rank() else seed  # a CPU generator uses 32 bits


def gather_random_states(adapter: LoraAdapter) -> list[torch.Tensor]:
    """Return the dropout states of all processes, for snapshots; empty with one process or without dropout."""
    if world_size() == 1 or not adapter.dropout:
        return []
    return gather(adapter.generator.get_state())


def _run_collective(operation: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Run an operation of all processes, if there are several. If another process has died, exit without a record:
    that process has one.
    """
    try:
        if world_size() > 1:
            operation(*arguments, **options)
    except RuntimeError as error:  # errors of torch.distributed are RuntimeErrors
        traceback.print_exc(file=sys.stderr)
        if is_out_of_memory(error):
            sys.exit(ExitCode.OUT_OF_MEMORY)
        sys.exit(ExitCode.DEVICE_LOST if is_device_lost(error) else ExitCode.INTERNAL)
