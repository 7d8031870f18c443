"""How every step is executed: what is decided once, at the first attempt, and must be the same in each later one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Recompute = Literal["nothing", "elementwise", "layers", "everything"]

NEAR = 2.0  # times as large, or half: a short row's part of what is constant is another than a long one's
SETTLED_TOKENS = 10_000  # from so many on a C heap grows no more; two rows of 1,000 took 0.81 of the formula, nine 0.98
RECOMPUTE_TEXTS: dict[Recompute, str] = {
    "nothing": "nothing recomputed",
    "elementwise": "norms and activations recomputed",
    "layers": "the first {} layers recomputed",
    "everything": "every layer recomputed",
}


class ExecutionPlan(BaseModel):
    """Everything about the execution of a run that would change its rounding, or its memory, if it were decided again.

    The estimate (estimate) fills in the first four fields, which decide what a step takes; the trainer the
    others. Every snapshot stores the plan. A new field needs a default that stands for what was done before the field
    existed, so that older snapshots still open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_tokens: Annotated[int, Field(ge=1)]  # tokens of one packed batch; a longer document has a batch of its own
    recompute: Recompute = "nothing"
    recompute_layers: Annotated[int, Field(ge=0)] = 0  # with "layers": how many, from the first
    cache_weights: bool = False  # the dequantized base is kept beside the quantized one
    compute_dtype: str = ""
    threads: int = 0
    device: str = ""
    probed: bool = False  # the largest packed batch was tried before the first step
    peak_bytes: int = 0  # predicted, or measured if that was more; 0 in older snapshots
    out_of_memory_kills: int = 0  # of earlier attempts, which this plan takes into account
    validation_row_tokens: int | None = None  # fewer than `row_tokens`, where a validation ran out of memory
    prompts_at_once: int | None = None  # sample prompts of one batch; None: all of them, 0: none is answered
    rendered_at: str | None = None  # ISO 8601: the time that a chat template is given if it asks for it

    def __str__(self) -> str:
        recompute = RECOMPUTE_TEXTS[self.recompute].format(self.recompute_layers)
        cache = ", dequantised weights kept" if self.cache_weights else ""
        return f"rows of {self.row_tokens:,} tokens, {recompute}{cache}"

    @property
    def layout(self) -> dict[str, Any]:
        """The fields that decide what a step takes, as events and the API show them."""
        return self.model_dump(include={"row_tokens", "recompute", "recompute_layers", "cache_weights"})

    @property
    def effective_validation_row_tokens(self) -> int:
        return min(self.row_tokens, self.validation_row_tokens or self.row_tokens)

    def with_layout(self, other: ExecutionPlan) -> ExecutionPlan:
        """This plan with the layout of `other`."""
        return self.model_copy(update=other.layout)


# The plan in an event: its layout alone.
PlannedLayout = Annotated[ExecutionPlan, PlainSerializer(lambda plan: plan.layout, return_type=dict[str, Any])]


class Measurement(BaseModel):
    """What one earlier job with the same device, base and quantization was, against what had been predicted of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recompute: Recompute
    cache_weights: bool
    loaded_ratio: float  # measured / predicted, of what stays in memory
    working_ratio: float  # and of what a step adds to it
    working_bytes: int | None = None  # what had been predicted of that
    tokens: int | None = None  # that went through its steps
    flops: float | None = (
        None  # FLOP a second in its steps, as app.domain.planning.duration counts; absent while it still runs
    )
    other_seconds: float | None = None  # beside steps, validations and the probe: start, saving, the last check

    def is_like(self, plan: ExecutionPlan) -> bool:
        return (self.recompute, self.cache_weights) == (plan.recompute, plan.cache_weights)

    def is_near(self, working_bytes: int, tokens: int) -> bool:
        """Whether steps of such a size, and so many, err as these did. A measurement without a size counts as near."""
        steps = self.tokens is None or _are_near(min(self.tokens, SETTLED_TOKENS), min(tokens, SETTLED_TOKENS))
        return steps and (self.working_bytes is None or _are_near(self.working_bytes, working_bytes))


def _are_near(one: int, other: int) -> bool:
    return max(one, other) <= NEAR * min(one, other)
