"""What defines a training method outside of its loss: its rows, hyperparameters, metrics and costs.

The loss itself needs torch and stands in worker/trainer/objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticKnownError

from app.domain.jobs.definitions import Info, Parameters

if TYPE_CHECKING:  # the specs, which these modules read, name the methods
    from app.domain.datasets.encoding import RenderedText
    from app.domain.datasets.examples import Example
    from app.domain.datasets.render import Renderer
    from app.domain.jobs.spec import Hyperparameters

PREFERRED, REJECTED = 1, -1  # roles of a document: preferred or desirable, rejected or undesirable; 0 is neither

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
    texts_of: Callable[[Renderer, Example], list[RenderedText]]  # raises TemplateRefused
    metrics: tuple[str, ...]  # besides the loss; their names follow "train_", "valid_" and "full_valid_"
    untrainable: str  # the noun of examples that contribute nothing
    nothing_trainable: str  # what is wrong with a file of such examples, with {context_length}, and a remedy
    parameters: type[Parameters] = Parameters  # its own hyperparameters, beside those of every method
    required: Callable[[Hyperparameters], tuple[str, ...]] = lambda _: ()  # those of them that a stored spec has
    rate_factor: float = 1.0  # times the learning rate of supervised training
    extra_forwards: Callable[[Hyperparameters], int] = lambda _: 0  # without gradients, beside supervised training
    has_pairs: bool = False  # the documents of an example are two answers, which share a packed batch
    min_batch_size: int = 1  # examples

    def problems(self, hyperparameters: Hyperparameters, of_methods: Iterable[str]) -> Iterator[str]:
        """Yield what is missing for this method, and what belongs to others; `of_methods` are the hyperparameters that
        not every method has.
        """
        given = {name for name in of_methods if getattr(hyperparameters, name) is not None}
        for name in sorted(set(self.required(hyperparameters)) - given):
            yield f"{self.name} needs a {name} among its hyperparameters"
        for name in sorted(given - self.parameters.model_fields.keys()):
            yield f"{self.name} has no hyperparameter {name}"
        if hyperparameters.batch_size < self.min_batch_size:
            yield f"{self.name} needs a batch_size of at least {self.min_batch_size}"


def texts_of_answers(renderer: Renderer, example: Example) -> list[RenderedText]:
    """The texts of a plain text, of a completion, or of every trained answer of a conversation."""
    return renderer.answers(example)


def texts_of_pair(renderer: Renderer, example: Example) -> list[RenderedText]:
    """The texts of the preferred answer, then those of the rejected one."""
    return [
        replace(text, role=role)
        for role, answer in ((PREFERRED, example.preferred), (REJECTED, example.non_preferred))
        for text in renderer.conversation(example, (*example.messages, *answer), first=len(example.messages))
    ]


def texts_of_labelled_answer(renderer: Renderer, example: Example) -> list[RenderedText]:
    """The text of the last answer, which is desirable or not."""
    is_chat = example.completion is None
    last = len(example.messages) - 1
    texts = renderer.conversation(example, example.messages, last) if is_chat else renderer.answers(example)
    return [replace(text, role=PREFERRED if example.label else REJECTED) for text in texts]
