"""The `quantization` parameters of a request -> a QuantizationSpec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WrapValidator

from app.domain.jobs.parameters.fields import Auto, Info, Parameters, ResolutionContext
from app.domain.jobs.parameters.request_parameters import RequestParameters
from app.domain.jobs.spec import QuantizationSpec


def _ignore_at_8_bits(value: Any, validate: Callable[[Any], Any], info: Info) -> Any:
    """`resolve_quantization` refuses it at 8 bits, whatever its value."""
    return None if info.data.get("bits") == 8 else validate(value)


class QuantizationParameters(Parameters):
    """How the frozen base is held. Absent means QLoRA (4-bit NF4, double quantization, bf16 compute); an explicit
    null means 16-bit LoRA.
    """

    prefix: ClassVar[str] = "quantization."

    bits: Annotated[
        Literal[4, 8], Field(description="Bits per weight of the frozen base; 4 by default.", examples=[4]), Auto(4)
    ]
    type: Annotated[
        Literal["nf4", "fp4"],
        Field(description="Of 4 bits; NF4 by default.", examples=["nf4"]),
        Auto(rule=lambda _, values: None if values["bits"] == 8 else "nf4"),
    ]
    compute_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        Field(description="bfloat16 by default, or what is faster where it runs.", examples=["bfloat16"]),
        Auto("bfloat16"),
    ]
    double_quant: Annotated[
        bool,
        Field(description="Of 4 bits: quantize the block scales too; true by default.", examples=[True]),
        WrapValidator(_ignore_at_8_bits),
        Auto(rule=lambda _, values: None if values["bits"] == 8 else True),
    ]


def resolve_quantization(request: RequestParameters, context: ResolutionContext) -> QuantizationSpec | None:
    """None for a 16-bit base, and where something is wrong; `request.problems` then says what."""
    wanted = request.given.get("quantization")
    if wanted is not None and not wanted.value:
        return None
    parameters = request.resolved(QuantizationParameters, context)
    if request.value("quantization.bits") == 8:
        for name in ("quantization.type", "quantization.double_quant"):
            if request.value(name) is not None:
                text = "belongs to 4 bits; 8 bits have one scale a row and no choice"
                request.refuse(name, text, "conflicting_parameters")
    return None if parameters is None or request.problems else QuantizationSpec(**parameters)
