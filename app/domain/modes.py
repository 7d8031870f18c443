"""How a step is laid out in memory: what was decided before the first one, from what there is room for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Recompute = Literal["nothing", "elementwise", "layers", "everything"]

NEAR = 2.0  # times as large, or half: a short row's part of what is constant is another than a long one's
SETTLED_TOKENS = 10_000  # from so many on a C heap grows no more; two rows of 1,000 took 0.81 of the formula, nine 0.98


class Mode(BaseModel):
    """None of it changes a result beyond rounding. The rounding changes with the row length alone.

    So do the masks of dropout, which are drawn row by row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_tokens: Annotated[int, Field(ge=1)]  # tokens of one forward; a longer document has a row of its own
    recompute: Recompute = "nothing"
    recompute_layers: Annotated[int, Field(ge=0)] = 0  # of "layers": the first so many
    cache_weights: bool = False  # the dequantised base is kept beside the quantised one

    def __str__(self) -> str:
        what = {"nothing": "nothing recomputed", "elementwise": "norms and activations recomputed",
                "layers": f"the first {self.recompute_layers} layers recomputed",
                "everything": "every layer recomputed"}[self.recompute]  # fmt: skip
        cache = ", dequantised weights kept" if self.cache_weights else ""
        return f"rows of {self.row_tokens:,} tokens, {what}{cache}"


class Measurement(BaseModel):
    """What one earlier job with the same device, base and quantization was, against what had been predicted of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recompute: Recompute
    cache_weights: bool
    loaded_ratio: float  # measured / predicted, of what stays in memory
    working_ratio: float  # and of what a step adds to it
    working_bytes: int | None = None  # what had been predicted of that
    tokens: int | None = None  # that went through its steps
    flops: float | None = None  # FLOP a second in its steps, as app.domain.duration counts; absent while it still runs
    other_seconds: float | None = None  # beside steps, validations and the probe: start, saving, the last check

    def is_like(self, mode: Mode) -> bool:
        return (self.recompute, self.cache_weights) == (mode.recompute, mode.cache_weights)

    def is_near(self, working_bytes: int, tokens: int) -> bool:
        """Whether steps of such a size, and so many, err as these did; one that does not say counts as near."""
        steps = self.tokens is None or _are_near(min(self.tokens, SETTLED_TOKENS), min(tokens, SETTLED_TOKENS))
        return steps and (self.working_bytes is None or _are_near(self.working_bytes, working_bytes))


def _are_near(one: int, other: int) -> bool:
    return max(one, other) <= NEAR * min(one, other)
