"""What defines a training method outside of its loss: its rows, hyperparameters, metrics and costs.

The loss itself needs torch and stands in worker/trainer/objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticKnownError

from app.domain.jobs.definitions import Info, Parameters
from app.domain.jobs.hyperparameters import Hyperparameters

MAX_BETA = 2  # OpenAI's; 0.01 to 0.5 are in use


def _is_in_bounds(value: float, info: Info) -> float:
    if value > MAX_BETA and info.data.get("loss_type") != "simpo":
        raise PydanticKnownError("less_than_equal", {"le": MAX_BETA})
    return value


Beta = Annotated[
    float,
    Field(
        ge=1e-4,
        le=10,  # SimPO's: 2 to 10 are in use
        examples=[0.1],
        description="Of methods with preferences alone: the strength of the preference, and of the penalty for moving "
        "away from the base model, at most 2 unless the loss is simpo; 0.1 by default, 2 for the loss simpo.",
    ),
    AfterValidator(_is_in_bounds),
]


@dataclass(frozen=True)
class Method:
    """A training method. `METHODS` has all of them by name."""

    name: str  # the value of `method.type`, and the key of its hyperparameters
    title: str  # in a list of methods
    rows: str  # what it trains on, in words
    formats: tuple[str, ...]  # names of its rows' formats (app.domain.datasets.examples)
    metrics: tuple[str, ...]  # besides the loss; their names follow "train_", "valid_" and "full_valid_"
    untrainable: str  # the noun of examples that contribute nothing
    nothing_trainable: str  # what is wrong with a file of such examples, with {context_length}, and a remedy
    parameters: type[Parameters] = Parameters  # its own hyperparameters, beside those of every method
    absent: Callable[[Hyperparameters], tuple[str, ...]] = lambda _: ()  # those of them that a stored spec lacks
    rate_factor: float = 1.0  # times the learning rate of supervised training
    extra_forwards: Callable[[Hyperparameters], int] = lambda _: 0  # without gradients, beside supervised training
    has_pairs: bool = False  # the documents of an example are two answers, which share a packed batch
    min_batch_size: int = 1  # examples

    def problems(self, hyperparameters: Hyperparameters, of_methods: Iterable[str]) -> dict[str, str]:
        """{parameter: what is wrong with it in a stored spec}; `of_methods` are the hyperparameters that not every
        method has.
        """
        given = {name for name in of_methods if getattr(hyperparameters, name) is not None}
        needed = self.parameters.model_fields.keys() - set(self.absent(hyperparameters))
        problems = dict.fromkeys(sorted(needed - given), f"is missing, and {self.name} needs it")
        loss = f" with the loss {hyperparameters.loss_type}" if hyperparameters.loss_type else ""
        problems |= dict.fromkeys(sorted(given - needed), f"does not belong to {self.name}{loss}; leave it out")
        if hyperparameters.batch_size < self.min_batch_size:
            problems["batch_size"] = f"is below {self.min_batch_size}, the least of {self.name}"
        return {f"hyperparameters.{name}": text for name, text in problems.items()}
