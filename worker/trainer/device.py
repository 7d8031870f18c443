"""Which processor, how many threads, which numbers: decided once, before anything is loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import torch

from app.domain.processor import cpu_name
from app.domain.spec import QuantizationSpec
from app.domain.states import Reason
from worker.trainer.failures import Failure

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores' worth of time in each period


def choose_device(wanted: str) -> torch.device:
    """A GPU where there is one, unless a device was asked for by name. Raises Failure(INVALID_SPEC)."""
    if wanted == "cuda" and not torch.cuda.is_available():
        text = "The spec asks for the device cuda, but torch sees no NVIDIA GPU here; ask for auto or cpu."
        raise Failure(Reason.INVALID_SPEC, text, "device")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"cpu ({cpu_name()})"


def choose_compute_dtype(quantization: QuantizationSpec | None, device: torch.device) -> torch.dtype:
    """What was asked for. 16-bit LoRA asks for no type: bfloat16, or float16 on a GPU that is older than bfloat16."""
    if quantization is not None:
        dtype: torch.dtype = getattr(torch, quantization.compute_dtype)
        return dtype
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def times_float32(dtype: torch.dtype, device: torch.device) -> float:
    """How long one matrix product takes in `dtype`, as a multiple of the same in float32; the quickest of three each.

    Below 1 where the processor has instructions for it (AMX, AVX-512 BF16: 0.5 or less), above where it imitates them.
    """
    return _product_seconds(dtype, device) / _product_seconds(torch.float32, device)


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((512, 1024), (1024, 512)))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return min(times)


def choose_threads() -> int:
    """The physical cores that this process may use: two threads on one core share its one matrix unit."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, len(os.sched_getaffinity(0)), _quota()))


def make_repeatable(device: torch.device, threads: int) -> None:
    """The order of float sums depends on the number of threads; with it fixed, a CPU run repeats to the bit."""
    torch.set_num_threads(threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass


def _quota() -> int:
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return os.cpu_count() or 1
