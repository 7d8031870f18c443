"""The defaults for device, threads and compute dtype, chosen once before anything is loaded; the load of the CPU, and
products in 16 bits there. autotune.py then measures whether float32 is faster on a CPU.

On a processor without instructions for 16 bits torch's product A B takes 30 to 70 times as long as in float32 (A B^T
5 to 8 times, A^T B 5 times), so the conversion to float32 is small beside it. Sums are in float32 in both cases, and
are rounded once.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.spec import QuantizationSpec, TrainerSpec
from app.domain.jobs.states import Reason
from app.system.host import control_groups, cpu_name, usable_cores
from worker.trainer.runtime.failures import Failure

CPU_QUOTA = "cpu.max"
OBVIOUS_RATIO = 10.0  # of two matrix products; a larger product shows a larger one
PRODUCT_SIZE = 4096  # 0.1 TFLOP: a millisecond on a fast GPU, 100 MB in 16 bits
CONVERTED_ROWS = 1024  # of the right matrix at once: 4 MB in float32 for each 1,024 columns


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def choose_device(requested: str, worker_has_gpu: bool = False) -> torch.device:
    """Return a GPU if there is one, unless the spec names a device.

    Raises Failure(DEVICE_LOST) if a GPU is requested, or the worker had one, and torch finds none: the request of the
    user is not the cause, and another attempt may find one. Without CUDA, torch never uses the GPU of the worker.
    """
    needs_gpu = requested == "cuda" or (requested == "auto" and worker_has_gpu and torch.version.cuda is not None)
    if needs_gpu and not torch.cuda.is_available():
        text = (
            "This job trains on a GPU, but torch finds no NVIDIA GPU on this worker. The job is tried again. The "
            "operator can look at nvidia-smi, install torch for CUDA, or set TUNERY_DEVICE to auto or cpu."
        )
        raise Failure(Reason.DEVICE_LOST, text)
    if requested == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"cpu ({cpu_name()})"


def choose_compute_dtype(
    quantization: QuantizationSpec | None, device: torch.device, is_free: bool = False
) -> torch.dtype:
    """Return the requested dtype; by default bfloat16, or float16 on a GPU without bfloat16."""
    if quantization is not None and not is_free:
        return torch_dtype(quantization.compute_dtype)
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def with_compute_dtype(spec: TrainerSpec, dtype: str) -> TrainerSpec:
    """Return the spec with `dtype` as the quantization's compute dtype; unchanged without quantization."""
    if spec.quantization is None:
        return spec
    quantization = spec.quantization.model_copy(update={"compute_dtype": dtype})
    return spec.model_copy(update={"quantization": quantization})


def float32_request(quantization: QuantizationSpec | None) -> str:
    """Return what to set to compute in float32; the base stays in its bits, except in 16, which have no float32."""
    if quantization is None:
        return 'quantization {"compute_dtype": "float32"}, which also holds the base model in 4 bits instead of 16'
    defaults = QuantizationSpec().model_dump()
    given = {
        name: value for name, value in quantization.model_dump(exclude_none=True).items() if value != defaults[name]
    }
    return f"quantization {json.dumps(given | {'compute_dtype': 'float32'})}"


def times_float32(dtype: torch.dtype) -> float:
    """Return the CPU time of a matrix product in `dtype` as a multiple of that in float32.

    0.25 with AMX, 1.6 with AVX-512 BF16, 4 where AVX-512 emulates 16 bits. Without AVX-512 a product takes 30 times as
    long, a large one 80 times: the small one decides, as the large ones take two seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratio = _product_ratio(dtype, 128)
        return ratio if ratio > OBVIOUS_RATIO else _product_ratio(dtype, 512)
    finally:
        torch.set_num_threads(threads)


def _product_ratio(dtype: torch.dtype, size: int) -> float:
    """Compare one thread's processor time, which other programs do not change.

    The two dtypes alternate, and the shortest of three times each counts.
    """
    _product_seconds(dtype, size)  # compiles
    times = [(_product_seconds(dtype, size), _product_seconds(torch.float32, size)) for _ in range(3)]
    seconds, float32_seconds = map(min, zip(*times, strict=True))
    return float(seconds / float32_seconds)


def _product_seconds(dtype: torch.dtype, size: int) -> float:
    left, right = (torch.ones(shape, dtype=dtype) for shape in ((size, 2 * size), (2 * size, size)))
    started = time.thread_time()
    left @ right
    return time.thread_time() - started


def product_flops(device: torch.device, dtype: torch.dtype, size: int = PRODUCT_SIZE) -> float:
    """Return the FLOP/s of one square matrix product, the fastest of three."""
    left, right = (torch.ones((size, size), dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def choose_threads() -> int:
    """Return the physical cores that this process may use: two threads on one core share its matrix unit."""
    return min(psutil.cpu_count(logical=False) or os.cpu_count() or 1, granted_cores())


def granted_cores() -> int:
    """Return the logical processors that this process may use, limited by its CPU quota."""
    return max(1, min(usable_cores(), _quota()))


def make_repeatable(device: torch.device, threads: int) -> None:
    """Fix the number of threads, and with it the order of float sums: a CPU run then repeats to the bit.

    Products of float32 are exact to float32. TF32, which cuDNN uses by default, rounds to 1e-3, and the checks of the
    base model and of the saved adapter allow 1e-4.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.fp32_precision = "ieee"
    torch.set_num_threads(threads)
    is_cpu = device.type == "cpu"
    torch.use_deterministic_algorithms(is_cpu)  # set for both: a process may train on a CPU and then on a GPU
    torch.utils.deterministic.fill_uninitialized_memory = not is_cpu  # type: ignore[attr-defined]  # costs a pass


def _quota() -> int:
    """Return the cores that the smallest quota of the control groups allows; "200000 100000" are two cores."""
    quotas = (_quota_cores(group / CPU_QUOTA) for group in control_groups())
    return min((cores for cores in quotas if cores), default=os.cpu_count() or 1)


def _quota_cores(path: Path) -> int | None:
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return None


@dataclass(frozen=True)
class CpuSample:
    """CPU time since a fixed moment: on the cores this process may use, and of the process itself."""

    at_seconds: float
    busy_seconds: float
    own_seconds: float


def take_sample() -> CpuSample:
    allowed = os.sched_getaffinity(0)
    times = [each for number, each in enumerate(psutil.cpu_times(percpu=True)) if number in allowed]
    busy_seconds = sum(each.user + each.nice + each.system + each.irq + each.softirq for each in times)
    return CpuSample(time.monotonic(), busy_seconds, time.process_time())


def others_share(before: CpuSample, after: CpuSample, cores: int) -> float:
    """Return the share of `cores` (0 to 1) that other programs used between the samples."""
    elapsed_seconds = max(after.at_seconds - before.at_seconds, 1e-9)
    others_seconds = (after.busy_seconds - before.busy_seconds) - (after.own_seconds - before.own_seconds)
    return min(1.0, max(0.0, others_seconds / elapsed_seconds / cores))


def product(left_M_N: torch.Tensor, right_N_P: torch.Tensor) -> torch.Tensor:
    """Return A B in the dtype of A, which may have a batch dimension too."""
    if not _is_slow(left_M_N):
        return left_M_N @ right_N_P
    sum_M_P = torch.zeros(*left_M_N.shape[:-1], right_N_P.shape[1])
    # Views inside, as autograd refuses later changes in place of a view that a Function returns.
    left, total = left_M_N.flatten(0, -2), sum_M_P.flatten(0, -2)
    parts = torch.split(left, CONVERTED_ROWS, dim=1), torch.split(right_N_P, CONVERTED_ROWS)
    for columns, rows in zip(*parts, strict=True):
        total.addmm_(columns.float(), rows.float())
    return sum_M_P.to(left_M_N.dtype)


def linear(x_T_K: torch.Tensor, weight_D_K: torch.Tensor, bias_D: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + bias in the dtype of x, which may have a batch dimension too."""
    if not _is_slow(x_T_K):
        return F.linear(x_T_K, weight_D_K, bias_D)
    y_T_D = product(x_T_K, weight_D_K.t())
    return y_T_D if bias_D is None else y_T_D.add_(bias_D)


def _is_slow(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.float32 and _is_emulated(tensor.dtype)


@lru_cache
def _is_emulated(dtype: torch.dtype) -> bool:
    return times_float32(dtype) > OBVIOUS_RATIO
