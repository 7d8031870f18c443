"""The defaults for device, threads and compute dtype, chosen once before anything is loaded."""

from __future__ import annotations

import os

import psutil
import torch

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from app.system.host import cpu_name, multiplies_fast, usable_cores
from worker.trainer.runtime.failures import Failure


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
    return f"cpu ({cpu_name()})" if device.type == "cpu" else f"cuda ({torch.cuda.get_device_name(device)})"


def choose_compute_dtype(
    quantization: QuantizationSpec | None, device: torch.device, is_free: bool = False
) -> torch.dtype:
    """Return the requested dtype; by default bfloat16, or what is faster where the device has no instructions for it:
    float16 on a GPU, float32 on a CPU. A base that is not quantized is stored in 16 bits in each case.
    """
    if quantization is not None and not is_free:
        return torch_dtype(quantization.compute_dtype)
    if device.type == "cpu":
        return torch.bfloat16 if multiplies_fast("bfloat16") else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def float32_request(quantization: QuantizationSpec | None) -> str:
    """Return what to set to compute in float32; the base stays in its bits, except in 16, which have no float32."""
    if quantization is None:
        return 'quantization {"compute_dtype": "float32"}, which also holds the base model in 4 bits instead of 16'
    return 'quantization.compute_dtype to "float32"'


def choose_threads() -> int:
    """Return the physical cores that this process may use: two threads on one core share its matrix unit."""
    return min(psutil.cpu_count(logical=False) or os.cpu_count() or 1, usable_cores())


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
