"""Why a run could not go on: a reason from the closed list, a sentence for the user, an exit code for the parent."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from app.domain.artifacts.full_disk import is_disk_full
from app.domain.jobs.events import Failed
from app.domain.jobs.spec import QuantizationSpec, RunSpec, TrainerSpec
from app.domain.jobs.states import ExitCode, Reason

OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a memory object",
)
ONEDNN_TEXT = "could not create a primitive"  # its code needs memory, too; a product it does not know has a longer text

# Bad input is bad again on the next attempt; anything that is not in this table is INTERNAL.
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
}


class Failure(Exception):
    """Ends a run. `message` is for the user: what was seen, what is allowed, what to do."""

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
    """The last record of a run that an exception ended."""
    failure = explain(error, run)
    return Failed(run_id=run.run_id, reason=failure.reason, message=failure.message, param=failure.param)


def explain(error: BaseException, run: RunSpec) -> Failure:
    """Any exception as a failure of `run`. What we cannot name is a crash: the parent tries it again, a few times."""
    if isinstance(error, Failure):
        return error
    if is_out_of_memory(error):
        return out_of_memory(run)
    if is_disk_full(error):
        return Failure(Reason.STORAGE_FULL, "The disk is full: no further checkpoint could be written.")
    return Failure(
        Reason.TRAINER_CRASHED,
        f"The trainer stopped at an internal error ({type(error).__name__}); the full text is in the job's log.",
    )


def out_of_memory(run: RunSpec) -> Failure:
    context = run.hyperparameters.context_length
    return Failure(
        Reason.OUT_OF_MEMORY,
        f"The base model, the adapter (r {run.lora.r}) and one row of up to {context:,} tokens do not fit into "
        "memory. Lower hyperparameters.context_length first, then lora.r; without quantization, ask for 4 bits.",
        "hyperparameters.context_length",
    )


@contextmanager
def loading(spec: TrainerSpec) -> Iterator[None]:
    """Nothing but the base model is in memory yet, so the knobs of rows and adapters are not those to turn."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _base_too_large(spec.base.name, spec.quantization) from error


class SuppressOutOfMemory(AbstractContextManager[None]):
    """Out of memory in here goes to the log and no further, unless `is_repeatable` says no.

    Behind the block, without the exception, the block's tensors are free: its traceback held every frame.
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
    """CUDA raises torch.OutOfMemoryError, the CPU allocator a RuntimeError with a sentence, Python MemoryError.

    A file that cannot be mapped is an OSError, or the one that safetensors makes of it.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    known = text == ONEDNN_TEXT or any(known in text for known in OUT_OF_MEMORY_TEXTS)
    return known and (isinstance(error, RuntimeError | OSError) or type(error).__name__ == "SafetensorError")


def _base_too_large(name: str, quantization: QuantizationSpec | None) -> Failure:
    bits = 16 if quantization is None else quantization.bits
    ask, param = ("Choose", "model") if bits == 4 else ("Ask for quantization in 4 bits, or choose", "quantization")
    text = (
        f"The base model {name} does not fit into memory in {bits} bits: there was too little of it while its weights "
        f"were loaded. {ask} a smaller base model, or use a worker with more memory."
    )
    return Failure(Reason.OUT_OF_MEMORY, text, param)
