"""Several processes train as one: each takes some of a step's examples, the sums are added up, all make the same step.

    examples of a step | 0 3 4 7 | 1 2 5 6 |      one process's share each, about equal in tokens
    sums               |   sum   |   sum   |      of gradients, losses, counts, tokens: all-reduced
    division           |  the same in every process: one adapter, W equal copies of it

The result does not depend on how many processes there are, beyond the rounding of sums. The first process alone
decides, saves, evaluates and reports; the others follow. With one process every function here does nothing.

Letters: W processes, P trained parameters.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from app.domain.jobs.states import ExitCode, Reason
from worker.trainer.adapter.lora import Adapter
from worker.trainer.runtime.failures import Failure

T = TypeVar("T")

# The others wait while the first evaluates and saves. A process that dies ends them at once, whatever stands here.
TIMEOUT = timedelta(hours=4)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def join(device: str) -> None:
    """Join the process group that torchrun's environment names; on CUDA, one process a GPU. Raises Failure."""
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        _take_gpu(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=TIMEOUT)


def leave() -> None:
    """Leave together: a process that is gone early cuts the others off from its last word."""
    _together(dist.barrier)
    dist.destroy_process_group()


def own_examples(examples: Sequence[int], tokens: Callable[[int], int]) -> list[int]:
    """This process's examples of a step, in the step's order: the longest first to whoever has the fewest tokens."""
    if world_size() == 1:
        return list(examples)
    loads = [0] * world_size()
    mine = set()
    for at in sorted(range(len(examples)), key=lambda at: (-tokens(examples[at]), at)):
        lightest = min(range(world_size()), key=lambda process: (loads[process], process))
        loads[lightest] += tokens(examples[at])
        if lightest == rank():
            mine.add(at)
    return [example for at, example in enumerate(examples) if at in mine]


class Sums(Protocol):
    """What a step has added up besides gradients."""

    def sums(self) -> torch.Tensor: ...

    def set_sums(self, sums: torch.Tensor) -> None: ...


def all_reduce(parameters: Sequence[torch.nn.Parameter], step: Sums) -> None:
    """Replace the gradients and sums of this process's examples by those of the whole step."""
    if world_size() == 1:
        return
    gradient_P = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
    _together(lambda: dist.all_reduce(gradient_P))
    parts = torch.split(gradient_P, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    sums = step.sums()
    _together(lambda: dist.all_reduce(sums))
    step.set_sums(sums)


def broadcast(value: T) -> T:
    """Return the first process's value, in every process."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    _together(lambda: dist.broadcast_object_list(values, src=0))
    received: T = values[0]
    return received


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    _together(lambda: dist.all_gather_object(values, value))
    return values


def seed_own_dropout(generator: torch.Generator, seed: int) -> None:
    """Every process its own dropout masks; the first one those of a run alone."""
    if rank():
        generator.manual_seed(random.Random(f"{seed}/{rank()}").getrandbits(32))  # the CPU's takes 32 bits of a seed


def gather_random_states(adapter: Adapter) -> list[torch.Tensor]:
    """Return the dropout state of every process, for the snapshots; nothing with one process or without dropout."""
    if world_size() == 1 or not adapter.dropout:
        return []
    state = adapter.generator.get_state()
    states = [torch.empty_like(state) for _ in range(world_size())]
    _together(lambda: dist.all_gather(states, state))
    return states


def threads_per_process(threads: int) -> int:
    """The processes of one machine share its cores."""
    return max(1, threads // world_size())


def _take_gpu(local_rank: int, processes: int) -> None:
    if processes > torch.cuda.device_count():
        text = (
            f"This worker is to train on {processes} GPUs at once, but torch sees {torch.cuda.device_count()}. Its "
            "operator can lower TUNERY_GPUS_PER_JOB or show it more GPUs."
        )
        raise Failure(Reason.INVALID_SPEC, text, "world_size")
    torch.cuda.set_device(local_rank)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Zeros where this process had no example of the step."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _together(operation: Callable[[], T]) -> T:
    """What every process does at this point. One of them is gone: so are we, without a word of our own about why."""
    try:
        return operation()
    except RuntimeError:  # torch.distributed's errors are, too
        traceback.print_exc(file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)
