"""The training methods. torch is not imported here: worker/trainer/objective has the loss of each."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from app.domain.methods.dpo import DPO
from app.domain.methods.kto import KTO
from app.domain.methods.method import Method
from app.domain.methods.orpo import ORPO
from app.domain.methods.supervised import SUPERVISED

__all__ = ["METHODS", "METHOD_PARAMETERS", "OWNERS", "Method", "MethodName"]

METHODS: dict[str, Method] = {method.name: method for method in (SUPERVISED, DPO, ORPO, KTO)}
METHOD_PARAMETERS = tuple(method.parameters for method in METHODS.values())
# {hyperparameter: the names of the methods that have it}, of those that not every method has
OWNERS = {
    name: tuple(method.name for method in METHODS.values() if name in method.parameters.model_fields)
    for parameters in METHOD_PARAMETERS
    for name in parameters.model_fields
}


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(METHODS)})]
