from __future__ import annotations

import errno
import weakref
from pathlib import Path

import pytest
import torch

from app.domain.jobs.spec import RunSpec
from app.domain.jobs.states import ExitCode, Reason
from tests.trainer.helpers import make_spec
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory, exit_code, explain, failed


@pytest.fixture
def run(tiny: Path, examples: Path) -> RunSpec:
    return make_spec(tiny, examples, context_length=300).run


class TestExplain:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            MemoryError(),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            torch.distributed.DistBackendError(
                "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error, NCCL version 2.27.5\n"
                "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
            ),
            torch.distributed.DistBackendError(
                "ncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc 8388608 bytes"
            ),
        ],
    )
    def test_out_of_memory_names_the_parameter_to_change(self, run: RunSpec, error: Exception) -> None:
        failure = explain(error, run)
        assert failure.reason is Reason.OUT_OF_MEMORY
        assert failure.param == "hyperparameters.context_length"
        assert "300" in failure.message

    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "x"), RuntimeError("No space left on device (os error 28)")]
    )
    def test_a_full_disk_has_its_own_reason(self, run: RunSpec, error: Exception) -> None:
        assert explain(error, run).reason is Reason.STORAGE_FULL

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously"),
            RuntimeError("No CUDA-capable device is detected"),
            RuntimeError("No CUDA GPUs are available"),
            torch.distributed.DistBackendError("ncclUnhandledCudaError\nLast error:\nGPU is lost"),
            torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 46),
        ],
        ids=["ecc", "no device", "none", "lost", "busy"],
    )
    def test_a_lost_gpu_has_its_own_reason_and_exit_code(self, run: RunSpec, error: Exception) -> None:
        failure = explain(error, run)
        assert failure.reason is Reason.DEVICE_LOST
        assert f"({str(error).splitlines()[0]})." in failure.message
        assert exit_code(failure.reason) == ExitCode.DEVICE_LOST

    def test_an_error_that_a_kernel_causes_is_no_lost_gpu(self, run: RunSpec) -> None:
        error = RuntimeError("CUDA error: an illegal memory access was encountered")
        assert explain(error, run).reason is Reason.TRAINER_CRASHED

    def test_an_unknown_error_is_a_crash_without_its_text(self, run: RunSpec) -> None:
        failure = explain(ValueError("/srv/secret/path"), run)
        assert failure.reason is Reason.TRAINER_CRASHED
        assert "ValueError" in failure.message
        assert "secret" not in failure.message

    def test_a_failure_stays_what_it_is(self, run: RunSpec) -> None:
        record = failed(Failure(Reason.INVALID_SPEC, "no", "lora.r"), run)
        assert (record.run_id, record.reason, record.message, record.param) == (
            run.run_id, Reason.INVALID_SPEC, "no", "lora.r",
        )  # fmt: skip


class TestSuppressOutOfMemory:
    def test_after_the_block_its_tensors_are_freed_and_the_error_is_logged(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        references: list[weakref.ref[torch.Tensor]] = []

        def work() -> None:
            tensor = torch.zeros(1)
            references.append(weakref.ref(tensor))
            raise MemoryError("so little")

        with SuppressOutOfMemory():
            work()
        assert references[0]() is None
        assert "MemoryError: so little" in capsys.readouterr().err

    def test_other_errors_and_work_that_is_not_repeatable_raise(self) -> None:
        with pytest.raises(MemoryError), SuppressOutOfMemory(lambda: False):
            raise MemoryError
        with pytest.raises(RuntimeError, match="shapes"), SuppressOutOfMemory():
            raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.DONE, ExitCode.DONE),
        (Reason.DRAINED, ExitCode.DRAINED),
        (Reason.CANCELLED, ExitCode.CANCELLED),
        (Reason.OUT_OF_MEMORY, ExitCode.OUT_OF_MEMORY),
        (Reason.NON_FINITE_LOSS, ExitCode.BAD_SPEC),
        (Reason.ADAPTER_MISMATCH, ExitCode.INTERNAL),
    ],
)
def test_every_reason_has_an_exit_code(reason: Reason, code: int) -> None:
    assert exit_code(reason) == code
