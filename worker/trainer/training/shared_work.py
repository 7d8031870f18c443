"""The work between steps that processes share: the first starts it, and the others take part (`parallel.lead`).

    validation      each process evaluates some examples; their sums are added
    samples         each answers some prompts
    end             the second compares the saved adapter with PEFT's, while the first measures what an engine must
                    compute: the longer of the two, and the first emits the records that show progress; each is one
                    pass through the base, which more processes would only repeat

The other processes only execute the task: after an out-of-memory error the first starts it again with less.
"""

from __future__ import annotations

import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from app.domain.deliveries.served_check import MAX_PROMPT_TOKENS, ServedReference
from app.domain.evaluations.spec import precision_text
from worker.trainer.checkpoint.verify import verify_adapter
from worker.trainer.distributed import parallel
from worker.trainer.memory.out_of_memory import OutOfMemoryPolicy, reduce_check, reduce_prompts, reduce_validation
from worker.trainer.objective.metrics import StepMetrics
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory, explain
from worker.trainer.runtime.records import RecordWriter
from worker.trainer.training.attempt import Loaded, Prepared
from worker.trainer.validation.evaluate import evaluate, sample_answers
from worker.trainer.validation.served_reference import measure_reference

VERIFYING_RANK = 1


class Task(NamedTuple):
    name: Literal["validate", "answer", "end"]
    size: int | None  # tokens of a batch, or prompts of one
    caches_weights: bool
    directory: Path = Path()  # of the saved adapter
    has_other_adapter: bool = False  # than that of the last step: all get it from the first process


class SharedWork:
    def __init__(self, loaded: Loaded, prepared: Prepared, policy: OutOfMemoryPolicy, emit: RecordWriter) -> None:
        self._loaded, self._run, self._objective = loaded, prepared.run, prepared.objective
        self._policy, self._emit = policy, emit

    def validate(self) -> StepMetrics | None:
        """Return the metrics of the validation file; None without one."""
        if (dataset := self._run.validation_dataset) is None:
            return None

        def work() -> StepMetrics:
            row_tokens = self._policy.plan.effective_validation_row_tokens
            self._start("validate", row_tokens)
            return self._evaluate(row_tokens)

        return self._policy.retry(self._run, "measuring the validation loss", work, partial(reduce_validation, dataset))

    def report_samples(self) -> None:
        """Emit the answers of the base model and of the tuned model to each sample prompt."""
        run, base = self._run, self._loaded.base
        if not run.spec.sample_prompts:
            return

        def work() -> list[tuple[str, str, str]]:
            size = self._policy.plan.prompts_at_once
            self._start("answer", size)
            return self._answer(size)

        reduce = partial(reduce_prompts, len(run.spec.sample_prompts))
        precision = precision_text(base.quantization.model_dump() if base.quantization else None)
        for prompt, of_base, tuned in self._policy.retry(run, "answering the sample prompts", work, reduce):
            text = f"Sample after step {run.step}: answers of the base model in {precision} and of the tuned model."
            self._emit.message(text, step=run.step, prompt=prompt, base=of_base, tuned=tuned)

    def end(self, directory: Path, *, is_earlier_step: bool) -> ServedReference | None:
        """Verify the saved adapter and return what an engine must compute. Raises Failure(ADAPTER_MISMATCH)."""
        run = self._run
        self._start("end", None, directory=directory, has_other_adapter=is_earlier_step)
        if is_earlier_step:
            parallel.copy_to_all(run.parameters)
        if parallel.world_size() == 1:
            self._verify(directory)
            return self._measure()
        reference = self._measure()
        if failure := parallel.gather(None)[VERIFYING_RANK]:
            raise failure
        return reference

    def take_part(self, task: Task) -> None:
        """Do the part of a process other than the first."""
        if not task.caches_weights:
            self._loaded.base.cache_weights(False)
        if task.has_other_adapter:
            parallel.copy_to_all(self._run.parameters)
        if task.name == "end":
            self._run.optimizer.state.clear()
            parallel.gather(self._failure_of_check(task.directory) if parallel.rank() == VERIFYING_RANK else None)
            return
        work = {"validate": self._evaluate, "answer": self._answer}[task.name]
        with SuppressOutOfMemory():
            work(task.size)
            return
        self._loaded.base.kernels.memory.free()

    def _start(self, name: Literal["validate", "answer", "end"], size: int | None, **options: Any) -> None:
        parallel.broadcast(Task(name, size, self._policy.plan.cache_weights, **options))

    def _evaluate(self, row_tokens: int | None) -> StepMetrics:
        assert self._run.validation_dataset is not None
        assert row_tokens is not None
        return evaluate(self._objective, self._run.validation_dataset, row_tokens, self._emit.keepalive)

    def _answer(self, prompts_at_once: int | None) -> list[tuple[str, str, str]]:
        return sample_answers(self._loaded.base, self._run, self._loaded.renderer, prompts_at_once)

    def _failure_of_check(self, directory: Path) -> Failure | None:
        """Return the error of the check, which the first process raises."""
        try:
            self._verify(directory)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return explain(error, self._run.spec)
        return None

    def _verify(self, directory: Path) -> None:
        run = self._run
        check = partial(verify_adapter, self._loaded.base, run, directory)
        self._policy.retry(run, "comparing the saved adapter", check, partial(reduce_check, run))

    def _measure(self) -> ServedReference | None:
        """Return what an engine must compute. The adapter is saved, so no error of this ends the run."""
        run, loaded = self._run, self._loaded

        def work() -> ServedReference | None:
            row_tokens = max(MAX_PROMPT_TOKENS, self._policy.plan.effective_validation_row_tokens)
            return measure_reference(loaded.base, run, loaded.renderer, row_tokens, self._emit.keepalive)

        try:
            doing = "recording what an engine must compute"
            return self._policy.retry(run, doing, work, partial(reduce_check, run))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"What an engine must compute was not recorded ({type(error).__name__}): deliveries are not checked."
            self._emit.message(text, "warn", step=run.step)
            return None
