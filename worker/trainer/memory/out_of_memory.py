"""Out-of-memory policy: repeat the same work with less memory, until nothing can be reduced.

    a step           from its start: first unchanged, after freeing the allocator's cache; then with one degree less at
                     a time, whichever costs the least time: shorter batches, more recomputation, no cached weights,
                     inputs of layers in host memory, MLPs in chunks
    cached weights   are not cached: every product dequantizes its weight
    validation       half as long batches, down to the longest document; then without cached weights
    samples          half as many prompts per batch, down to one; without cached weights; then no answers
    last check       without cached weights; the moments are free already

A repetition costs only time. A repeated step has the same examples: the gradients are dropped, the dropout generator is
reset, and the result is equal within rounding. (Dropout masks are drawn per batch, and per chunk of a tiled MLP, so
different batches or chunks have different masks.) Every reduction is reported in an event, stored in the next snapshot,
and kept by later attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from app.domain.jobs.spec import MAX_SAMPLE_PROMPTS
from app.domain.jobs.states import Reason
from app.domain.planning.duration import relative_token_cost
from app.domain.planning.estimate import MLP_CHUNK_TOKENS, USABLE_MEMORY_SHARE
from app.domain.planning.execution_plan import ExecutionPlan, Recompute
from app.domain.planning.memory import DeviceKind, min_loss_chunk_tokens, offloaded_bytes
from app.domain.planning.packing import largest_batch
from worker.trainer.data.batch import TokenizedDataset
from worker.trainer.distributed import parallel
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.memory.placement import available_offload_bytes
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.objective.optimizer import can_repeat_step
from worker.trainer.runtime.failures import Failure, SuppressOutOfMemory, out_of_memory
from worker.trainer.runtime.records import Keepalive, RecordWriter
from worker.trainer.training.state import Run

RECOMPUTE_LEVELS: Sequence[Recompute] = ("nothing", "elementwise", "layers", "everything")  # by falling memory
RECOMPUTE_DEGREES = 4  # from "elementwise" to "everything": a quarter of the layers each
MAX_UNCHANGED_REPETITIONS = 3  # of steps in one attempt: fragmentation that returns needs a smaller plan
NOT_CACHED = "Dequantized weights are no longer cached: results stay the same to the bit, but every step takes longer."

Result = TypeVar("Result")
Reduction = tuple[ExecutionPlan, str]  # the reduced plan, and a description of the change for the user


class OutOfMemoryPolicy:
    """Owner of the current execution plan: applies it to the model, and reduces it when memory runs out."""

    def __init__(self, plan: ExecutionPlan, base: FrozenBase, recomputation: Recomputation, emit: RecordWriter) -> None:
        self.plan = plan
        self._base = base
        self._recomputation = recomputation
        self._emit = emit
        self._unchanged_repetitions = 0
        self._apply()

    def retry_step(self, run: Run, work: Callable[[int], Result]) -> Result:
        """Return `work(row_tokens)`, repeated after each out-of-memory error: once unchanged, then with a reduced plan.

        Raises Failure(OUT_OF_MEMORY) when nothing is left to reduce, and the error if the step cannot be repeated.
        """
        state, step, is_repeated = run.adapter.generator.get_state(), run.step, False
        while True:
            with SuppressOutOfMemory(
                lambda: run.step == step and not run.gradients_are_all_reduced and can_repeat_step(run.optimizer)
            ):
                return work(self.plan.row_tokens)
            run.adapter.generator.set_state(state)
            self._recomputation.free()
            run.clear_gradients()
            self._base.kernels.memory.free()
            if is_repeated or self._unchanged_repetitions >= MAX_UNCHANGED_REPETITIONS:
                self._reduce_step(run)
            else:
                self._unchanged_repetitions += 1
                text = f"Out of memory in step {run.step + 1} with {self.plan}. Cached memory is freed; "
                self._emit.message(text + "the step is repeated unchanged.", "warn", step=run.step + 1)
            is_repeated = True

    def retry(
        self, run: Run, doing: str, work: Callable[[], Result], reduce: Callable[[ExecutionPlan], Reduction]
    ) -> Result:
        """Return `work()`, repeated after each out-of-memory error with the plan that `reduce` returns.

        `work` must read the plan each time. `reduce` raises Failure when nothing is left to reduce.
        """
        while True:
            with SuppressOutOfMemory():
                return work()
            self._base.kernels.memory.free()
            before = self.plan
            self.plan, change = reduce(before)
            self._base.cache_weights(self.plan.cache_weights)
            text = f"Out of memory while {doing} after step {run.step}. {change}"
            self._emit.message(text, "warn", step=run.step, **_changed_fields(before, self.plan))

    def agree(self) -> None:
        """With several processes: use the smallest layout of all, because each step needs all processes."""
        agreed = smallest_plan(parallel.gather(self.plan))
        if agreed.layout != self.plan.layout:
            self.plan = self.plan.with_layout(agreed)
            self._apply()

    def before_batch(self, keepalive: Keepalive) -> Keepalive:
        """Return what to call before each batch: `keepalive`, and a trim of the heap if the memory is almost full."""

        def keep_alive_and_trim(doing: str) -> None:
            keepalive(doing)
            self._base.kernels.memory.trim_if_full()

        return keep_alive_and_trim

    def _reduce_step(self, run: Run) -> None:
        before, lengths = self.plan, run.dataset.lengths()
        largest_tokens = largest_batch(lengths, run.spec.hyperparameters, run.spec.seed, before.row_tokens)[1]
        layers = len(self._recomputation.layers)
        can_offload = before.offload or self._has_host_memory(min(before.row_tokens, largest_tokens), layers)
        kind = self._base.kernels.kind
        after = reduce_plan(
            before,
            largest_tokens,
            lengths.max_tokens,
            layers,
            kind,
            can_offload=can_offload,
            can_tile=self._recomputation.can_tile,
        )
        if after is None:
            raise out_of_memory(run.spec)
        self.plan = after
        self._apply()
        text = (
            f"Out of memory in step {run.step + 1} with {before}. The step is repeated with {after}; "
            f"{_effect_on_result(run, before, after)}."
        )
        self._emit.message(text, "warn", step=run.step + 1, before=before.layout, after=after.layout)

    def _has_host_memory(self, row_tokens: int, layers: int) -> bool:
        """Return whether the inputs of the layers and the embedding fit into the host's memory."""
        width, hidden_size = self._base.compute_dtype.itemsize, self._base.text_config.hidden_size
        needed = offloaded_bytes(hidden_size, layers, width, row_tokens) + self._recomputation.embedding.size_bytes
        return needed <= USABLE_MEMORY_SHARE * available_offload_bytes()

    def _apply(self) -> None:
        """Set recomputation and cached weights as planned; cache no weights if they do not fit."""
        self._recomputation.set(
            self.plan.recompute,
            self.plan.recompute_layers,
            offload=self.plan.offload,
            mlp_chunk_tokens=self.plan.mlp_chunk_tokens,
        )
        self._base.min_loss_chunk_tokens = min_loss_chunk_tokens(self.plan)
        with SuppressOutOfMemory():
            self._base.cache_weights(self.plan.cache_weights)
            return
        before, self.plan = self.plan, self.plan.model_copy(update={"cache_weights": False})
        self._base.cache_weights(False)
        self._base.kernels.memory.free()
        if self._emit.ending is None:  # with several processes, it may have ended in the first before they agreed
            text = f"Out of memory while the weights were dequantized. {NOT_CACHED}"
            self._emit.message(text, "warn", **_changed_fields(before, self.plan))


def reduce_after_kills(plan: ExecutionPlan, kills: int) -> ExecutionPlan:
    """Reduce validation and samples, too, after the kernel killed attempts: the cause of the kills is unknown."""
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


def smallest_plan(plans: Sequence[ExecutionPlan]) -> ExecutionPlan:
    """Return the first plan, but with each field of the layout from the plan where it takes the least memory."""
    recompute = max((plan.recompute for plan in plans), key=RECOMPUTE_LEVELS.index)
    return plans[0].model_copy(
        update={
            "row_tokens": min(plan.row_tokens for plan in plans),
            "recompute": recompute,
            "recompute_layers": max(plan.recompute_layers for plan in plans) if recompute == "layers" else 0,
            "cache_weights": all(plan.cache_weights for plan in plans),
            "offload": any(plan.offload for plan in plans),
            "mlp_chunk_tokens": min((plan.mlp_chunk_tokens for plan in plans if plan.mlp_chunk_tokens), default=0),
        }
    )


def reduce_plan(
    plan: ExecutionPlan,
    largest_tokens: int,
    longest_document: int,
    layers: int,
    kind: DeviceKind,
    *,
    can_offload: bool = True,
    can_tile: bool = True,
) -> ExecutionPlan | None:
    """Return the fastest of the plans with one degree less memory; None when nothing is left to reduce.

    These have half as long batches, no cached weights, or the next degree of recomputation. `largest_tokens` are those
    of the largest packed batch, `layers` the decoder layers that can be recomputed, `can_tile` whether they have gated
    MLPs.
    """
    tokens = min(plan.row_tokens, largest_tokens)
    half = max(longest_document, tokens // 2)  # a longer document is a batch by itself anyway
    changes: list[dict[str, Any]] = [{"row_tokens": half}] if half < tokens else []
    if plan.cache_weights:
        changes.append({"cache_weights": False})
    if layers and plan.recompute == "nothing":
        changes.append({"recompute": "elementwise"})
    elif layers and plan.recompute != "everything":
        recomputed = plan.recompute_layers + max(1, layers // RECOMPUTE_DEGREES)
        is_partial = recomputed < layers
        recompute = "layers" if is_partial else "everything"
        changes.append({"recompute": recompute, "recompute_layers": recomputed if is_partial else 0})
    elif layers:
        if kind == "cuda" and can_offload and not plan.offload:
            changes.append({"offload": True})
        limit = min(tokens, plan.mlp_chunk_tokens or tokens) if can_tile else 0
        changes += [{"mlp_chunk_tokens": each} for each in MLP_CHUNK_TOKENS if each < limit]
    return min(
        (plan.model_copy(update=change) for change in changes),
        key=lambda each: relative_token_cost(layers, each, kind, min(each.row_tokens, largest_tokens)),
        default=None,
    )


def reduce_validation(dataset: TokenizedDataset, plan: ExecutionPlan) -> Reduction:
    """Halve the batches of validations, then cache no weights. Raises Failure(OUT_OF_MEMORY)."""
    current, longest = plan.effective_validation_row_tokens, dataset.lengths().max_tokens
    if (half := max(longest, current // 2)) < current:
        text = (
            f"The validation restarts with packed batches of {half:,} tokens instead of {current:,}; the loss stays "
            "the same within rounding."
        )
        return plan.model_copy(update={"validation_row_tokens": half}), text
    if plan.cache_weights:
        return plan.model_copy(update={"cache_weights": False}), f"The validation restarts. {NOT_CACHED}"
    text = (
        f"The longest document of the validation file has {longest:,} tokens and does not fit into memory together "
        "with the base model and the adapter. Shorten it, lower hyperparameters.context_length, or omit the validation "
        "file."
    )
    raise Failure(Reason.OUT_OF_MEMORY, text, "hyperparameters.context_length")


def reduce_prompts(prompts: int, plan: ExecutionPlan) -> Reduction:
    """Halve the prompts per batch, then cache no weights, then answer none: training does not depend on samples."""
    current = prompts if plan.prompts_at_once is None else plan.prompts_at_once
    if current > 1:
        half = (current + 1) // 2
        text = f"From now on {half} of the {prompts} sample prompts are answered per batch instead of {current}."
        return plan.model_copy(update={"prompts_at_once": half}), text
    if plan.cache_weights:
        return plan.model_copy(update={"cache_weights": False}), NOT_CACHED
    text = "A single sample prompt does not fit, so none is answered from now on; training is not affected."
    return plan.model_copy(update={"prompts_at_once": 0}), text


def reduce_check(run: Run, plan: ExecutionPlan) -> Reduction:
    """Free the cached weights before the last check. Raises Failure(OUT_OF_MEMORY)."""
    if not plan.cache_weights:
        text = (
            f"The adapter of step {run.step} is saved, but there is not enough memory to load it again beside the base "
            "model and to compare it, so it was not published. Lower lora.r, or use a worker with more memory."
        )
        raise Failure(Reason.OUT_OF_MEMORY, text, "lora.r")
    return plan.model_copy(update={"cache_weights": False}), "It is repeated without cached weights."


def _effect_on_result(run: Run, before: ExecutionPlan, after: ExecutionPlan) -> str:
    drawn_together = [(each.row_tokens, each.mlp_chunk_tokens) for each in (before, after)]
    if run.adapter.dropout and len(set(drawn_together)) > 1:
        return "its examples stay the same, but tokens are computed in other groups, which draw different dropout masks"
    return "its examples and the result stay the same, within rounding"


def _changed_fields(before: ExecutionPlan, after: ExecutionPlan) -> dict[str, dict[str, Any]]:
    old, new = before.model_dump(), after.model_dump()
    changed = [name for name, value in new.items() if value != old[name]]
    return {"before": {name: old[name] for name in changed}, "after": {name: new[name] for name in changed}}
