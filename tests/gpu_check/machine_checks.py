"""The checks of the machine: offered memory, float32, attention kernels by head size, planted defects, budgets."""

from __future__ import annotations

import torch

from app.domain.jobs.states import Reason
from tests.gpu_check.check import REPORT, CheckFailed, Seen, Site
from tests.trainer.kernels.planted_defects import REFUSED
from worker.node.device import list_gpus, training_device
from worker.trainer.kernels.cpu.memory import CpuMemory
from worker.trainer.kernels.cuda.memory import CudaMemory
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.attention.attention import document_attention
from worker.trainer.model.attention.attention_check import AttentionCall, check_attention
from worker.trainer.model.base_check import check_base
from worker.trainer.model.base_model import load_base
from worker.trainer.runtime.device import dtype_name
from worker.trainer.runtime.failures import Failure

MAX_OFFERED = 1.03  # of what torch finds: the driver keeps 0.6 % of an H100 for itself
# of queries and values; on a CPU the kernel does not depend on them
HEAD_SIZES = {
    "cuda": ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (512, 512)),
    "cpu": ((64, 64), (192, 128)),
}
HEADS = {"cuda": (8, 2), "cpu": (2, 1)}  # of queries and keys
PRODUCT_SIZE = 512
MAX_PRODUCT_ERROR = 1e-5  # of the largest value; float32 rounds to 1e-6 here, TF32 to 1e-3


def offered_memory(site: Site) -> Seen:
    """The worker offers the memory that torch finds: on a MIG slice that of the slice, not of the GPU."""
    offered = training_device("auto" if site.is_cuda else "cpu").memory_bytes
    if site.is_cuda:
        found = torch.cuda.mem_get_info(site.device)[1]
        kind = "a MIG slice" if "MIG" in list_gpus()[0]["name"] else "a whole GPU"
    else:
        found, kind = CpuMemory().measure().capacity_bytes, "a CPU"
    values = {"offered GB": offered / 1e9, "found GB": found / 1e9}
    is_too_small = site.is_cuda and found > MAX_OFFERED * offered
    if (site.is_cuda and offered > MAX_OFFERED * found) or is_too_small or offered <= 0:
        allowed = f"{found / MAX_OFFERED / 1e9:.1f} to {found * MAX_OFFERED / 1e9:.1f} GB offered"
        remedy = "look at nvidia-smi -L and CUDA_VISIBLE_DEVICES; name one slice by its UUID"
        raise CheckFailed(f"{offered / 1e9:.1f} GB offered, {found / 1e9:.1f} GB found", allowed, remedy)
    return {"device": kind} | values


def tf32(site: Site) -> Seen:
    """Products and convolutions of float32 are exact to float32, although TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, generator=generator) for _ in range(2))
    image, kernel = left.view(1, 8, 64, PRODUCT_SIZE), right[:16, :72].reshape(16, 8, 3, 3)
    errors = {}
    for name, compute, inputs in (
        ("matrix product", torch.matmul, (left, right)),
        ("convolution", torch.nn.functional.conv2d, (image, kernel)),
    ):
        found = compute(*(each.to(site.device) for each in inputs)).double().cpu()
        expected = compute(*(each.double() for each in inputs))
        errors[name] = float((found - expected).abs().max() / expected.abs().max())
    if not max(errors.values()) <= MAX_PRODUCT_ERROR:
        seen = ", ".join(f"{name} off by {error:.1e}" for name, error in errors.items())
        remedy = "unset what turns TF32 on in this image; torch.backends.*.fp32_precision must be ieee"
        raise CheckFailed(seen, f"{MAX_PRODUCT_ERROR:.0e} of the largest value", remedy)
    return errors


def attention(site: Site) -> Seen:
    """Forward and backward of every kernel against float32, with and without a sliding window."""
    margins: dict[str, tuple[float, float]] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for query_size, value_size in HEAD_SIZES[site.device.type]:
            for window in (None, 16):
                options = {"scaling": None, "sliding_window": window}
                heads = *HEADS[site.device.type], query_size, value_size
                call = AttentionCall(document_attention, torch.nn.Module(), options, *heads, site.device, dtype)
                found: dict[str, tuple[float, float]] = {}
                try:
                    check_attention("the model", [call], margins=found)
                except (Failure, RuntimeError) as error:
                    remedy = "install another version of torch or of the driver, or report the kernel"
                    seen = f"head size {query_size}, {dtype_name(dtype)}: {error}"
                    raise CheckFailed(seen, "the rounding of the dtype", remedy) from error
                for name, (difference, allowed) in found.items():
                    key = f"{name}, {dtype_name(dtype)}"
                    margins[key] = max(margins.get(key, (0.0, allowed)), (difference, allowed))
    return {f"{len(HEAD_SIZES[site.device.type])} head sizes": "as float32"} | margin_texts(margins)


def planted_defects(site: Site) -> Seen:
    """A defect in each kernel of the CPU is refused by the check that every job makes before it trains."""
    kernels = choose_kernels(torch.device("cpu"))
    for number, (name, defect) in enumerate(REFUSED.items()):
        directory = defect.make_base(site.directory / str(number))
        with defect.planted():
            try:
                check_base(load_base(name, directory, defect.quantization, torch.bfloat16, kernels))
            except Failure as error:
                if error.reason == Reason.MODEL_UNAVAILABLE and "forward fails" not in error.message:
                    continue
            raise CheckFailed(f"a base with the defect {name!r} passed", "none passes", REPORT)
    return f"{len(REFUSED)} defects, each refused"


def slot_budget(site: Site) -> Seen:
    """A process with the budget of a slot has no more: an allocation above it fails, one below it does not."""
    total_bytes = torch.cuda.mem_get_info(site.device)[1]
    budget_bytes = total_bytes // 4
    memory = CudaMemory(site.device)
    memory.set_limits(budget_bytes)
    measured = memory.measure().capacity_bytes
    remedy = "set TUNERY_SLOTS_PER_GPU to 1: torch does not keep a limit on this GPU"
    if abs(measured - budget_bytes) > 1e-3 * budget_bytes:
        raise CheckFailed(f"a budget of {budget_bytes} bytes is measured as {measured}", "a thousandth more", remedy)
    torch.empty(budget_bytes // 2, dtype=torch.uint8, device=site.device)
    try:
        torch.empty(budget_bytes, dtype=torch.uint8, device=site.device)
    except torch.OutOfMemoryError:
        return f"{budget_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB"
    raise CheckFailed(f"{budget_bytes:.0f} bytes more than the half fit", f"a budget of {budget_bytes}", remedy)


def margin_texts(margins: dict[str, tuple[float, float]]) -> dict[str, str]:
    """Return each largest difference beside the allowed one."""
    return {name: f"{found:.2g} of {allowed:.2g}" for name, (found, allowed) in margins.items()}
