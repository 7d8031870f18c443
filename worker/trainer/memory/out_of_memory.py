"""Out of memory: do the same work again with less, as long as there is something left to reduce.

    a step           from its start, with batches half as long, more recomputation, no cached weights
    cached weights   not cached: every product dequantises its own
    validation       batches half as long, down to the longest document; then without cached weights
    samples          half the prompts at once, down to one; without cached weights; then none is answered
    last check       without the optimizer's moments, which no step needs any more, and without cached weights

Nothing is lost but time. A step that is made again has the same examples: gradients are dropped, the dropout generator
is put back, and the result is equal within rounding. (Dropout masks are drawn batch by batch: other batches, other
masks.) Every reduction is emitted as an event, stored with the next snapshot, and kept by later attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from app.domain.jobs.spec import MAX_SAMPLE_PROMPTS
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import ExecutionPlan, Recompute
from worker.trainer.data.batch import TokenizedDataset
from worker.trainer.distributed import parallel
from worker.trainer.memory import device_memory
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.model.base_model import Base
from worker.trainer.records import Keepalive, RecordWriter
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory, out_of_memory
from worker.trainer.state import Run

GROWTH = 1.1  # of the planned peak, which gaps in the heap may add before they are given back
DEGREES: Sequence[Recompute] = ("nothing", "elementwise", "layers", "everything")  # each takes less than the one before
NEXT: dict[Recompute, Recompute] = {"nothing": "elementwise", "elementwise": "everything", "layers": "everything"}
NOT_CACHED = "The dequantised weights are not kept any more: the same numbers to the bit, and every step takes longer."

Result = TypeVar("Result")
Reduction = tuple[ExecutionPlan, str]  # the reduced plan, and what has changed, for the user


class OutOfMemoryPolicy:
    """Owner of the execution plan in force: applies it, and reduces it where memory is short."""

    def __init__(self, plan: ExecutionPlan, base: Base, recomputation: Recomputation, emit: RecordWriter) -> None:
        self.plan = plan
        self._base = base
        self._recomputation = recomputation
        self._emit = emit
        self._apply()

    def retry_step(self, run: Run, work: Callable[[int], Result]) -> Result:
        """Return `work(row_tokens)`, repeated with less where memory is short. Raises Failure(OUT_OF_MEMORY)."""
        state, step = run.adapter.generator.get_state(), run.step
        while True:
            with SuppressOutOfMemory(lambda: run.step == step):
                return work(self.plan.row_tokens)
            run.adapter.generator.set_state(state)
            self._free(run)
            self._reduce_step(run)

    def retry(
        self, run: Run, doing: str, work: Callable[[], Result], reduce: Callable[[ExecutionPlan], Reduction]
    ) -> Result:
        """Return `work()`, which reads the plan anew each time. `reduce` raises Failure where nothing is left."""
        while True:
            with SuppressOutOfMemory():
                return work()
            device_memory.free(self._base.device)
            before = self.plan
            self.plan, change = reduce(before)
            self._base.cache_weights(self.plan.cache_weights)
            text = f"Out of memory while {doing} after step {run.step}. {change}"
            self._emit.message(text, "warn", step=run.step, **_changed_fields(before, self.plan))

    def set_probed(self, peak_bytes: int | None) -> None:
        """Note that the plan was tried once, with the measured peak where there is one."""
        peak = {} if peak_bytes is None else {"peak_bytes": peak_bytes}
        self.plan = self.plan.model_copy(update={"probed": True} | peak)

    def agree(self) -> None:
        """With several processes: a layout that is too much for one is too much for all."""
        agreed = smallest(parallel.gather(self.plan))
        if agreed.layout != self.plan.layout:
            self.plan = self.plan.with_layout(agreed)
            self._apply()

    def trim_between_batches(self, keepalive: Keepalive) -> Keepalive:
        """Return a keepalive that, between two batches, also gives back what they left in the heap beyond the plan."""

        def keep_alive_and_trim(doing: str) -> None:
            keepalive(doing)
            if self.plan.peak_bytes:  # older snapshots have none
                limit_bytes = min(
                    int(GROWTH * self.plan.peak_bytes), device_memory.trim_threshold_bytes(self._base.device)
                )
                device_memory.give_back(self._base.device, limit_bytes)

        return keep_alive_and_trim

    def _free(self, run: Run) -> None:
        self._recomputation.free()
        run.clear_gradients()
        if not run.step:
            run.optimizer.state.clear()  # half of the moments, should it be they that did not fit
        device_memory.free(self._base.device)

    def _reduce_step(self, run: Run) -> None:
        before, longest = self.plan, run.dataset.lengths().longest
        after = smaller(before, longest, can_recompute=bool(self._recomputation.layers))
        if after is None:
            raise out_of_memory(run.spec)
        self.plan = after
        self._apply()
        text = (
            f"Out of memory in step {run.step + 1}, with {before}. The step is made again with {after}; "
            f"{_what_stays(run, before, after)}."
        )
        self._emit.message(text, "warn", step=run.step + 1, before=before.layout, after=after.layout)

    def _apply(self) -> None:
        """Put the plan into the model."""
        self._recomputation.set(self.plan.recompute, self.plan.recompute_layers)
        with SuppressOutOfMemory():
            self._base.cache_weights(self.plan.cache_weights)
            return
        before, self.plan = self.plan, self.plan.model_copy(update={"cache_weights": False})
        self._base.cache_weights(False)
        device_memory.free(self._base.device)
        if self._emit.ending is None:  # it may have ended in the first of several processes, before they agreed
            text = f"Out of memory while the weights were dequantised. {NOT_CACHED}"
            self._emit.message(text, "warn", **_changed_fields(before, self.plan))


def after_kills(plan: ExecutionPlan, kills: int) -> ExecutionPlan:
    """Validate and sample with less, too, after the kernel killed attempts: nobody knows what those were doing."""
    if not kills:
        return plan
    prompts = MAX_SAMPLE_PROMPTS if plan.prompts_at_once is None else plan.prompts_at_once
    validation_row_tokens = min(plan.effective_validation_row_tokens, plan.row_tokens >> kills)
    return plan.model_copy(
        update={
            "out_of_memory_kills": kills,
            "validation_row_tokens": max(1, validation_row_tokens),
            "prompts_at_once": min(prompts, max(1, MAX_SAMPLE_PROMPTS >> kills)),
        }
    )


def smallest(plans: Sequence[ExecutionPlan]) -> ExecutionPlan:
    """Return the first plan with, of each part of the layouts, the one that takes the least memory."""
    recompute = max((plan.recompute for plan in plans), key=DEGREES.index)
    return plans[0].model_copy(
        update={
            "row_tokens": min(plan.row_tokens for plan in plans),
            "recompute": recompute,
            "recompute_layers": max(plan.recompute_layers for plan in plans) if recompute == "layers" else 0,
            "cache_weights": all(plan.cache_weights for plan in plans),
        }
    )


def smaller(plan: ExecutionPlan, longest_document: int, can_recompute: bool = True) -> ExecutionPlan | None:
    """Halve the batches, recompute one degree more, and cache nothing; None where nothing is left to reduce."""
    half = max(longest_document, plan.row_tokens // 2)
    after = plan.model_copy(
        update={
            "row_tokens": min(plan.row_tokens, half),  # a batch of one long document is that document anyway
            "recompute": NEXT.get(plan.recompute, plan.recompute) if can_recompute else plan.recompute,
            "recompute_layers": 0,
            "cache_weights": False,
        }
    )
    return after if after != plan else None


def smaller_validation(dataset: TokenizedDataset, plan: ExecutionPlan) -> Reduction:
    """Raises Failure(OUT_OF_MEMORY)."""
    now, longest = plan.effective_validation_row_tokens, dataset.lengths().longest
    if (half := max(longest, now // 2)) < now:
        text = f"It begins again with rows of {half:,} tokens instead of {now:,}: the same loss, within rounding."
        return plan.model_copy(update={"validation_row_tokens": half}), text
    if plan.cache_weights:
        return plan.model_copy(update={"cache_weights": False}), f"It begins again. {NOT_CACHED}"
    text = (
        f"The validation file's longest document, of {longest:,} tokens, does not fit into memory beside the base "
        "model and the adapter. Shorten it, lower hyperparameters.context_length, or leave the validation file out."
    )
    raise Failure(Reason.OUT_OF_MEMORY, text, "hyperparameters.context_length")


def fewer_prompts(prompts: int, plan: ExecutionPlan) -> Reduction:
    """The result does not depend on sample prompts: in the end none is answered."""
    now = prompts if plan.prompts_at_once is None else plan.prompts_at_once
    if now > 1:
        half = (now + 1) // 2
        text = f"From here on {half} of the {prompts} prompts are answered at once instead of {now}."
        return plan.model_copy(update={"prompts_at_once": half}), text
    if plan.cache_weights:
        return plan.model_copy(update={"cache_weights": False}), NOT_CACHED
    text = "Not even one prompt fits, so none is answered from here on; what is learned does not depend on it."
    return plan.model_copy(update={"prompts_at_once": 0}), text


def without_moments(run: Run, plan: ExecutionPlan) -> Reduction:
    """For the last check of a run that is complete. Raises Failure(OUT_OF_MEMORY)."""
    if not run.optimizer.state and not plan.cache_weights:
        text = (
            f"The adapter of step {run.step} is saved, but there is too little memory to load it again beside the base "
            "model and to compare it, so it was not published. Lower lora.r, or use a worker with more memory."
        )
        raise Failure(Reason.OUT_OF_MEMORY, text, "lora.r")
    run.optimizer.state.clear()
    text = "It is done again without the optimizer's moments, which no step needs any more"
    text += f". {NOT_CACHED}" if plan.cache_weights else "."
    return plan.model_copy(update={"cache_weights": False}), text


def _what_stays(run: Run, before: ExecutionPlan, after: ExecutionPlan) -> str:
    if run.adapter.dropout and after.row_tokens != before.row_tokens:
        return "its examples stay the same, and the result within rounding but for dropout: other rows draw other masks"
    return "its examples and the result stay the same, within rounding"


def _changed_fields(before: ExecutionPlan, after: ExecutionPlan) -> dict[str, dict[str, Any]]:
    old, new = before.model_dump(), after.model_dump()
    changed = [name for name, value in new.items() if value != old[name]]
    return {"before": {name: old[name] for name in changed}, "after": {name: new[name] for name in changed}}
