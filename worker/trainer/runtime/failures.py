"""Failures of a run: a reason from the closed list, a message for the user, an exit code for the worker."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.datasets.chat_template import UnusableTemplate
from app.domain.jobs.events import Failed
from app.domain.jobs.spec import RunSpec, TrainerSpec
from app.domain.jobs.states import ExitCode, Reason

OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a memory object",
    "cublas_status_alloc_failed",  # handles and workspaces of the libraries of CUDA
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "failed to cuda calloc",  # NCCL's communicators and buffers
    "failed to cuda malloc",
    "failed to cuda host alloc",
)
# CUDA's texts for a GPU that failed, was removed, or is used up by another process. Errors that a program causes, such
# as an illegal address, are not among them.
DEVICE_LOST_TEXTS = (
    "no cuda-capable device",
    "no cuda gpus are available",
    "cuda-capable device(s) is/are busy or unavailable",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
    "gpu is lost",
    "fallen off the bus",
    "cuda error: unknown error",
    "system not yet initialized",
)
ONEDNN_TEXT = "could not create a primitive"  # out of memory for compiled code; other oneDNN errors have a longer text

# BAD_SPEC is for input with which every attempt fails. A reason that is not in this table is INTERNAL.
EXIT_CODES = {
    Reason.DONE: ExitCode.DONE,
    Reason.DRAINED: ExitCode.DRAINED,
    Reason.PAUSED: ExitCode.PAUSED,
    Reason.CANCELLED: ExitCode.CANCELLED,
    Reason.OUT_OF_MEMORY: ExitCode.OUT_OF_MEMORY,
    Reason.INVALID_SPEC: ExitCode.BAD_SPEC,
    Reason.INVALID_N_EXAMPLES: ExitCode.BAD_SPEC,
    Reason.INVALID_TRAINING_FILE: ExitCode.BAD_SPEC,
    Reason.INVALID_VALIDATION_FILE: ExitCode.BAD_SPEC,
    Reason.MODEL_UNAVAILABLE: ExitCode.BAD_SPEC,
    Reason.NON_FINITE_LOSS: ExitCode.BAD_SPEC,
    Reason.DEVICE_LOST: ExitCode.DEVICE_LOST,
}


class Failure(Exception):
    """An error that ends the run. `message` is for the user: what was seen, what is allowed, what to do."""

    def __init__(self, reason: Reason, message: str, param: str | None = None) -> None:
        super().__init__(reason, message, param)
        self.reason = reason
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


def exit_code(reason: Reason) -> int:
    return EXIT_CODES.get(reason, ExitCode.INTERNAL)


def failed(error: BaseException, run: RunSpec) -> Failed:
    """Return the last record of a run that an exception ended."""
    failure = explain(error, run)
    return Failed(run_id=run.run_id, reason=failure.reason, message=failure.message, param=failure.param)


def explain(error: BaseException, run: RunSpec) -> Failure:
    """Return any exception as a failure of `run`. An unknown one is a crash, after which the worker tries again."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, UnusableTemplate):
        return Failure(Reason.MODEL_UNAVAILABLE, f"The base model cannot be used: {error}. Choose another.", "model")
    if is_out_of_memory(error):
        return out_of_memory(run)
    if is_device_lost(error):
        text = (
            f"The GPU stopped working during the job ({str(error).strip().splitlines()[0]}). The job is tried again "
            "from its last snapshot. The operator can look at nvidia-smi and at the kernel's log on this worker."
        )
        return Failure(Reason.DEVICE_LOST, text)
    if is_disk_full(error):
        return Failure(Reason.STORAGE_FULL, "The disk is full: no further checkpoint could be saved.")
    return Failure(
        Reason.TRAINER_CRASHED,
        f"The trainer stopped because of an internal error ({type(error).__name__}). The job's log has the details.",
    )


def out_of_memory(run: RunSpec) -> Failure:
    context = run.hyperparameters.context_length
    return Failure(
        Reason.OUT_OF_MEMORY,
        f"The base model, the adapter (r {run.lora.r}) and one document of up to {context:,} tokens do not fit into "
        "memory. Lower hyperparameters.context_length first, then lora.r; without quantization, request 4 bits.",
        "hyperparameters.context_length",
    )


@contextmanager
def loading(spec: TrainerSpec) -> Iterator[None]:
    """Turn an out-of-memory error while the base model is loaded into a Failure that names the base model's options.

    Documents and the adapter are not in memory yet, so a shorter context or a lower rank would not help.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        bits = spec.quantization.bits if spec.quantization else 16
        advice, param = ("Choose", "model") if bits == 4 else ("Request 4-bit quantization, choose", "quantization")
        text = (
            f"The base model {spec.base.name} does not fit into memory in {bits} bits: memory ran out while its "
            f"weights were loaded. {advice} a smaller base model, or use a worker with more memory."
        )
        raise Failure(Reason.OUT_OF_MEMORY, text, param) from error


class SuppressOutOfMemory(AbstractContextManager[None]):
    """Log and suppress an out-of-memory error in the block, unless `is_repeatable` returns False.

    After the block its tensors are free: the exception's traceback, which references every frame, is gone.
    """

    def __init__(self, is_repeatable: Callable[[], bool] = lambda: True) -> None:
        self._is_repeatable = is_repeatable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or not is_out_of_memory(error) or not self._is_repeatable():
            return False
        traceback.print_exception(error, file=sys.stderr)
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that memory ran out.

    CUDA raises torch.OutOfMemoryError, the CPU allocator a RuntimeError with one of the texts, Python a MemoryError. If
    a file cannot be mapped, that is an OSError or a SafetensorError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    matches = text == ONEDNN_TEXT or any(known_text in text for known_text in OUT_OF_MEMORY_TEXTS)
    return matches and (isinstance(error, RuntimeError | OSError) or type(error).__name__ == "SafetensorError")


def is_device_lost(error: BaseException) -> bool:
    """Return whether the error means that the GPU failed or disappeared (torch's errors are RuntimeErrors)."""
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in DEVICE_LOST_TEXTS)
