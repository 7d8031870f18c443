"""Data-parallel training with two processes. On the CPU the collectives run on Gloo instead of NCCL."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from app.domain.jobs.events import (
    Done,
    Failed,
    Message,
    Metric,
    ServedReferenceMeasured,
    SnapshotSaved,
    Started,
    Stopped,
    parse_record,
)
from app.domain.jobs.states import ExitCode, Reason
from tests.deadline import until
from tests.trainer.helpers import Trainings, load_tiny_base, make_spec, prepare, run_trainer
from worker.node.slot import try_lock
from worker.trainer.distributed import parallel
from worker.trainer.distributed.torchrun import _forward_lines, combine_exit_codes
from worker.trainer.runtime.failures import Failure

ROOT = Path(__file__).parents[3]
MANY_STEPS = 1_000_000
TIMEOUT_SECONDS = 120.0  # three processes import torch
FLOAT32 = {"compute_dtype": "float32"}
KTO = {"method": "kto", "beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.5}
WITH_PLANTED_RANK = (
    "import sys; from worker.trainer.distributed import torchrun; from worker.trainer.__main__ import main; "
    "torchrun.PROGRAM = 'tests.trainer.distributed.planted_rank'; sys.exit(main(sys.argv[1:]))"
)

pytestmark = pytest.mark.timeout(240)
three_processes = pytest.mark.extended("starts three processes with torch once more")


class Trainer:
    """A trainer of two processes, started as the worker starts it."""

    def __init__(self, workdir: Path, lock: int | None = None, planted: str | None = None) -> None:
        self.workdir = workdir
        self.records: list[Any] = []
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the trainer
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(["-m", "worker.trainer"] if planted is None else ["-c", WITH_PLANTED_RANK]),
                str(workdir),
            ],
            cwd=ROOT,
            env=os.environ | {"TUNERY_PARENT_PID": str(os.getpid()), "PLANTED": planted or ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,
        )

    def read_metric(self) -> None:
        """Read records up to the first of a step."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            self.records.append(parse_record(line))
            if isinstance(self.records[-1], Metric):
                return
        raise AssertionError(self.log_text())

    def wait(self) -> int:
        assert self.process.stdout is not None
        self.records += [parse_record(line) for line in self.process.stdout]
        return self.process.wait(TIMEOUT_SECONDS)

    def ranks(self) -> list[psutil.Process]:
        return [
            each
            for each in psutil.Process(self.process.pid).children()
            if "worker.trainer.distributed.torchrun_rank" in each.cmdline()
        ]

    def losses(self) -> dict[int, float]:
        return {record.step: record.train_loss for record in self.records if isinstance(record, Metric)}

    def adapter(self) -> dict[str, torch.Tensor]:
        assert isinstance(self.records[-1], Done), self.log_text()
        return load_file(self.workdir / self.records[-1].directory / "adapter_model.safetensors")

    def log_text(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()


@pytest.fixture
def start(tiny: Path, examples: Path, tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    started: list[Trainer] = []

    def start(lock: int | None = None, planted: str | None = None, **changes: Any) -> Trainer:
        spec = make_spec(
            tiny, changes.pop("training_file", examples), **({"quantization": FLOAT32, "world_size": 2} | changes)
        )
        workdir = tmp_path / f"work-{len(started)}"
        workdir.mkdir()
        (workdir / "spec.json").write_text(spec.model_dump_json())
        started.append(Trainer(workdir, lock, planted))
        return started[-1]

    yield start
    for trainer in started:
        trainer.process.kill()
        trainer.process.communicate()
        trainer.log.close()


@pytest.fixture(params=[{}, KTO], ids=["supervised", "kto"])
def method(request: pytest.FixtureRequest, examples: Path, labelled: Path) -> dict[str, Any]:
    """The changes of a spec for a method, with its file."""
    return request.param | {"training_file": labelled if request.param else examples}


class TestEqualToOneProcess:
    @pytest.mark.extended("two real processes of torch beside one")
    def test_losses_and_the_adapter_equal_those_of_one_process(
        self, start: Callable[..., Trainer], tiny: Path, tmp_path: Path, method: dict[str, Any]
    ) -> None:
        """KTO: with two processes, and packed batches of other lengths, the reference point is that of one."""
        # The 12th example is a step by itself.
        changes = {"batch_size": 11, "validation_file": method["training_file"], "n_epochs": 3} | method
        # Each process answers some prompts and evaluates some examples; one checks the adapter of the best step.
        changes |= {"sample_prompts": ("1: red", "2: blue", "3: green"), "promote_best": True}
        code, single = run_trainer(make_spec(tiny, quantization=FLOAT32, **changes), tmp_path / "alone")
        two = start(**changes)
        assert (code, two.wait()) == (0, 0), two.log_text()
        assert sum(isinstance(record, Started | Done) for record in two.records) == 2  # only one process reports
        for mine, theirs in zip(
            single.of(Metric), (record for record in two.records if isinstance(record, Metric)), strict=True
        ):
            assert theirs.train_loss == pytest.approx(mine.train_loss, rel=1e-5)
            assert (theirs.valid_loss or 0) == pytest.approx(mine.valid_loss or 0, rel=1e-5)
            assert theirs.grad_norm == pytest.approx(mine.grad_norm, rel=1e-4)
            assert (theirs.trained_tokens, theirs.labelled_tokens) == (mine.trained_tokens, mine.labelled_tokens)
        for name, tensor in single.adapter().items():
            torch.testing.assert_close(two.adapter()[name], tensor, rtol=1e-3, atol=1e-4)
        assert samples(two.records) == samples(single.records)
        assert sum(isinstance(record, ServedReferenceMeasured) for record in two.records) == 1


def samples(records: list[Any]) -> list[tuple[int, str, str]]:
    messages = [record.data for record in records if isinstance(record, Message) and "prompt" in record.data]
    return [(data["step"], data["prompt"], data["base"]) for data in messages]


@three_processes
class TestResume:
    def test_a_run_that_sigterm_drained_resumes_exactly_or_with_another_number_of_processes(
        self, start: Callable[..., Trainer], tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        """Every process holds the slot's lock until SIGTERM, which reaches the group of processes, has drained it."""
        changes = {"n_epochs": 30, "dropout": 0.2}
        uninterrupted = start(**changes)
        assert uninterrupted.wait() == 0, uninterrupted.log_text()
        with try_lock(tmp_path / "gpu.lock") as lock:
            first = start(lock=lock, **changes)
            first.read_metric()
            for rank in first.ranks():
                opened = [os.readlink(path) for path in Path(f"/proc/{rank.pid}/fd").iterdir()]
                assert str(tmp_path / "gpu.lock") in opened
            os.killpg(first.process.pid, signal.SIGTERM)  # as the worker does
            assert first.wait() == ExitCode.DRAINED, first.log_text()
        (stopped,) = (record for record in first.records if isinstance(record, Stopped))
        assert stopped.reason == Reason.DRAINED
        *_, snapshot = (record for record in first.records if isinstance(record, SnapshotSaved))
        assert 0 < snapshot.step < max(uninterrupted.losses())
        resume_from = first.workdir / snapshot.directory

        second = start(**changes, resume_from=resume_from)
        assert second.wait() == 0, second.log_text()
        assert first.losses() | second.losses() == uninterrupted.losses()
        for name, tensor in uninterrupted.adapter().items():
            assert torch.equal(second.adapter()[name], tensor), name

        single = make_spec(tiny, examples, quantization=FLOAT32, **changes, resume_from=resume_from)
        code, log = run_trainer(single, tmp_path / "alone")
        assert code == ExitCode.DONE
        assert [metric.step for metric in log.of(Metric)] == [*second.losses()]


@three_processes
class TestOutOfMemory:
    def test_a_shortage_in_one_process_changes_all_and_not_the_result(
        self, start: Callable[..., Trainer], tiny: Path, tmp_path: Path, method: dict[str, Any]
    ) -> None:
        """Before, one process repeated the step, the other waited for it in the next collective until it was killed.

        KTO: while the reference point of the first step is measured. The other method: in the first validation.
        """
        planted = "rows" if "method" in method else "validation"
        method |= {"validation_file": method["training_file"]}
        code, single = run_trainer(make_spec(tiny, quantization=FLOAT32, **method), tmp_path / "alone")
        two = start(planted=planted, **method)
        assert (code, two.wait()) == (0, 0), two.log_text()
        assert "can't allocate memory" in two.log_text()
        assert list(two.losses().values()) == pytest.approx(single.losses, rel=1e-5)
        mine, theirs = (
            [each.full_valid_loss or 0 for each in log if isinstance(each, Metric)]
            for log in (single.records, two.records)
        )
        assert theirs == pytest.approx(mine, rel=1e-5)
        (warning,) = [record for record in two.records if isinstance(record, Message)]
        assert ("validation" in warning.message) == (planted == "validation")

    def test_a_shortage_after_the_gradients_were_added_ends_all_processes(self, start: Callable[..., Trainer]) -> None:
        trainer = start(planted="full")
        assert trainer.wait() == ExitCode.OUT_OF_MEMORY, trainer.log_text()


class TestJoin:
    def test_nccl_allocates_its_buffers_before_memory_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[object] = []
        fake_cuda(monkeypatch, calls, reduce=lambda tensor: calls.append("all_reduce"))
        parallel.join("auto")
        assert calls == ["cpu:gloo,cuda:nccl", "all_reduce", "synchronize"]

    def test_buffers_that_do_not_fit_are_out_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def reduce(tensor: torch.Tensor) -> None:
            raise torch.distributed.DistBackendError("ncclUnhandledCudaError\nFailed to CUDA calloc 4194304 bytes")

        fake_cuda(monkeypatch, [], reduce)
        with pytest.raises(Failure, match="NCCL's buffers") as caught:
            parallel.join("auto")
        assert caught.value.reason is Reason.OUT_OF_MEMORY

    def test_too_few_gpus_are_no_error_of_the_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_cuda(monkeypatch, [], reduce=lambda tensor: None)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        with pytest.raises(Failure, match="3 GPUs") as caught:
            parallel.join("auto")
        assert (caught.value.reason, caught.value.param) == (Reason.DEVICE_LOST, None)


def fake_cuda(monkeypatch: pytest.MonkeyPatch, calls: list[object], reduce: Callable[[torch.Tensor], None]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, **_: calls.append(backend))
    monkeypatch.setattr(parallel.dist, "all_reduce", reduce)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


class TestEnd:
    def test_control_lines_are_forwarded(self) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as first_rank, os.fdopen(writing, "wb"):
            _forward_lines(io.BytesIO(b"pause\ncancel\n"), writing)
            assert os.read(first_rank.fileno(), 100) == b"pause\ncancel\n"

    @three_processes
    def test_a_cancel_that_only_the_first_process_reads_ends_all(self, start: Callable[..., Trainer]) -> None:
        trainer = start(max_steps=MANY_STEPS)
        trainer.read_metric()
        assert trainer.process.stdin is not None
        trainer.process.stdin.write(b'{"command": "cancel", "run_id": "run-a"}\n')
        trainer.process.stdin.flush()
        assert trainer.wait() == ExitCode.CANCELLED, trainer.log_text()
        (stopped,) = (record for record in trainer.records if isinstance(record, Stopped))
        assert stopped.reason == Reason.CANCELLED

    @three_processes
    def test_a_killed_process_ends_the_trainer_with_an_exit_code(self, start: Callable[..., Trainer]) -> None:
        trainer = start(max_steps=MANY_STEPS)
        trainer.read_metric()
        ranks = trainer.ranks()
        assert len(ranks) == 2
        ranks[1].kill()  # as the kernel does when memory runs out
        assert trainer.wait() == ExitCode.KILLED, trainer.log_text()
        assert not any(rank.is_running() for rank in ranks)
        assert not isinstance(trainer.records[-1], Failed)  # the other process has no record of its own

    def test_no_process_outlives_the_trainer(self, start: Callable[..., Trainer]) -> None:
        trainer = start(max_steps=MANY_STEPS)
        trainer.read_metric()
        ranks = trainer.ranks()
        trainer.process.kill()
        until(lambda: not any(rank.is_running() for rank in ranks), "their end")

    @three_processes
    def test_a_loss_that_is_not_finite_ends_all_processes_with_its_reason(self, start: Callable[..., Trainer]) -> None:
        trainer = start(learning_rate=1e30)
        assert trainer.wait() == ExitCode.BAD_SPEC, trainer.log_text()
        assert trainer.records[-1].reason == Reason.NON_FINITE_LOSS

    @three_processes
    def test_a_gpu_that_another_process_loses_has_its_own_exit_code(self, start: Callable[..., Trainer]) -> None:
        """The first process sees only that a collective failed; the worker must check its GPUs all the same."""
        trainer = start(planted="gpu", max_steps=MANY_STEPS)
        assert trainer.wait() == ExitCode.DEVICE_LOST, trainer.log_text()

    @pytest.mark.parametrize(
        ("failures", "expected"),
        [
            ([ExitCode.DEVICE_LOST, ExitCode.INTERNAL], ExitCode.DEVICE_LOST),
            ([ExitCode.INTERNAL, ExitCode.DEVICE_LOST], ExitCode.DEVICE_LOST),
            ([ExitCode.INTERNAL, ExitCode.OUT_OF_MEMORY], ExitCode.OUT_OF_MEMORY),
            ([-signal.SIGKILL, ExitCode.INTERNAL], ExitCode.KILLED),
            ([-signal.SIGABRT], ExitCode.INTERNAL),
            ([], ExitCode.INTERNAL),
        ],
    )
    def test_without_a_record_the_most_telling_exit_code_counts(self, failures: list[int], expected: int) -> None:
        assert combine_exit_codes(failures) == expected


class TestOwnExamples:
    @pytest.fixture
    def two(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        monkeypatch.setattr(parallel, "world_size", lambda: 2)
        return lambda rank: monkeypatch.setattr(parallel, "rank", lambda: rank)

    def test_every_example_belongs_to_one_process_and_tokens_are_about_equal(self, two: Callable[[int], None]) -> None:
        lengths = {4: 90, 2: 10, 9: 40, 7: 30, 1: 20, 3: 10}
        assigned = []
        for rank in range(2):
            two(rank)
            assigned.append(parallel.own_examples(list(lengths), lengths.__getitem__))
        assert assigned == [[4, 2], [9, 7, 1, 3]]
        assert [sum(lengths[example] for example in own) for own in assigned] == [100, 100]

    @given(st.lists(st.integers(1, 99), max_size=20), st.integers(1, 64))
    def test_any_number_of_processes_divides_any_step(self, lengths: list[int], processes: int) -> None:
        """Every example is trained once; with fewer examples than processes, some processes have none."""
        assigned = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "world_size", lambda: processes)
            for rank in range(processes):
                patch.setattr(parallel, "rank", lambda rank=rank: rank)
                assigned.append(parallel.own_examples(range(len(lengths)), lengths.__getitem__))
        assert sorted(example for own in assigned for example in own) == list(range(len(lengths)))
        loads = [sum(lengths[example] for example in own) for own in assigned]
        assert max(loads) - min(loads) <= max(lengths, default=0)

    def test_each_process_has_its_own_dropout_masks(
        self, two: Callable[[int], None], train: Trainings, tmp_path: Path
    ) -> None:
        masks = []
        for rank in range(2):
            two(rank)
            generator = prepare(train.spec(dropout=0.2), load_tiny_base(train.base), tmp_path).adapter.generator
            masks.append(torch.rand(4, generator=generator).tolist())
        assert masks[0] == torch.rand(4, generator=torch.Generator().manual_seed(7)).tolist()
        assert masks[0] != masks[1]
