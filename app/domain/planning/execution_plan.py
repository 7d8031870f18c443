"""The execution plan: decided once, in the first attempt, and unchanged in every later attempt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Recompute = Literal["nothing", "elementwise", "layers", "everything"]

MAX_SIZE_RATIO = 2.0  # between similar jobs; the share of constant memory depends on the size
# From so many tokens on, a C heap grows no more: two packed batches of 1,000 took 0.81 of the formula, nine 0.98.
STABLE_HEAP_TOKENS = 10_000
RECOMPUTE_TEXTS: dict[Recompute, str] = {
    "nothing": "no recomputation",
    "elementwise": "norms and activations recomputed",
    "layers": "the first {} layers recomputed",
    "everything": "every layer recomputed",
}


SPARSE_LAYOUT: dict[str, Any] = {"offload": False, "mlp_chunk_tokens": 0}  # parts of the layout that most plans lack


class ExecutionPlan(BaseModel):
    """Everything about the execution of a run that changes its rounding or its memory.

    `app.domain.planning.estimate` sets the layout, which determines the memory and time of a step; the trainer sets the
    other fields. Every snapshot stores the plan. The default of a new field must mean the
    behaviour before the field existed, so that older snapshots still open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The maximum of a packed batch; a longer sequence has a batch of its own. Snapshots and the API call it a row; any
    # other row is one of a dataset or of a table.
    row_tokens: Annotated[int, Field(ge=1)]
    recompute: Recompute = "nothing"
    recompute_layers: Annotated[int, Field(ge=0)] = 0  # with "layers": recompute so many layers, from the first
    cache_weights: bool = False  # keep the dequantized weights besides the quantized ones
    compute_dtype: str = ""
    threads: int = 0
    device: str = ""
    probed: bool = False  # the largest packed batch ran before the first step
    peak_bytes: int = 0  # estimated, or measured if that was more; 0 in older snapshots
    out_of_memory_kills: int = 0  # in earlier attempts; this plan accounts for them
    validation_row_tokens: int | None = None  # fewer than `row_tokens` after a validation ran out of memory
    prompts_at_once: int | None = None  # batch size of sample prompts; None: all, 0: none is answered
    rendered_at: str | None = None  # ISO 8601: the time that chat templates print
    # Fused kernels, longer chunks of the loss, dropout masks drawn twice, batches made ahead.
    cuda_kernels: bool = False
    # With "everything": the inputs of the layers wait for the backward in host memory, and the embedding is there.
    offload: bool = False
    mlp_chunk_tokens: Annotated[int, Field(ge=0)] = 0  # MLPs of recomputed layers run over so many at once; 0: over all
    loss_scale: float = 1.0  # less after a gradient overflowed in float16; gradients are divided by it again

    def __str__(self) -> str:
        recompute = RECOMPUTE_TEXTS[self.recompute].format(self.recompute_layers)
        cache = ", dequantized weights cached" if self.cache_weights else ""
        offload = ", layer inputs in host memory" if self.offload else ""
        chunks = f", MLPs in chunks of {self.mlp_chunk_tokens:,} tokens" if self.mlp_chunk_tokens else ""
        return f"packed batches of {self.row_tokens:,} tokens, {recompute}{cache}{offload}{chunks}"

    @property
    def layout(self) -> dict[str, Any]:
        """The fields that determine memory and time of a step, as events and the API show them."""
        names = {"row_tokens", "recompute", "recompute_layers", "cache_weights"}
        return self.model_dump(include=names | {name for name in SPARSE_LAYOUT if getattr(self, name)})

    @property
    def effective_validation_row_tokens(self) -> int:
        return min(self.row_tokens, self.validation_row_tokens or self.row_tokens)

    def with_layout(self, other: ExecutionPlan) -> ExecutionPlan:
        """This plan with the layout of `other`."""
        return self.model_copy(update=SPARSE_LAYOUT | other.layout)


# An event contains only the layout of the plan.
PlannedLayout = Annotated[ExecutionPlan, PlainSerializer(lambda plan: plan.layout, return_type=dict[str, Any])]


class Measurement(BaseModel):
    """Measured against predicted values of one earlier job with the same device, base and quantization."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recompute: Recompute
    cache_weights: bool
    loaded_ratio: float  # measured / predicted loaded memory
    working_ratio: float  # measured / predicted working memory
    working_bytes: int | None = None  # predicted working memory
    tokens: int | None = None  # processed in its training steps
    flops: float | None = None  # FLOP/s in its steps (app.domain.planning.duration); None while it still runs
    other_seconds: float | None = None  # besides steps, validations and probe: start, saving, verification
    others_share: float | None = None  # from workers of earlier releases; not used

    def has_layout_of(self, plan: ExecutionPlan) -> bool:
        return (self.recompute, self.cache_weights) == (plan.recompute, plan.cache_weights)

    def is_similar_in_size(self, working_bytes: int, tokens: int) -> bool:
        """Whether this job had similar working memory and token count; a job without sizes counts as similar."""
        is_similar = self.tokens is None or _are_similar(
            min(self.tokens, STABLE_HEAP_TOKENS), min(tokens, STABLE_HEAP_TOKENS)
        )
        return is_similar and (self.working_bytes is None or _are_similar(self.working_bytes, working_bytes))


def _are_similar(one: int, other: int) -> bool:
    return max(one, other) <= MAX_SIZE_RATIO * min(one, other)
