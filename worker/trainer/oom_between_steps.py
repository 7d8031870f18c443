"""Out of memory where nothing is learned: the same again with less, as often as there is something left to give up.

    weights cached      not cached: every product dequantises its own
    validation          rows half as long, down to the longest document; then without cached weights
    samples             half the prompts at once, down to one; without cached weights; then none is answered
    last check          without the moments, which no step needs any more, and without cached weights

What was given up is a choice like any other: an event says it, the next snapshot has it, later attempts keep it. No
adapter changes by it. What is learned has a room of its own, oom_in_step.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from app.domain.events import Message
from app.domain.states import Reason
from worker.trainer import device_memory
from worker.trainer.batch import Corpus
from worker.trainer.failures import Failure, SurvivedShortage
from worker.trainer.snapshot import Choices
from worker.trainer.state import Run

if TYPE_CHECKING:
    from worker.trainer.bookkeeping import Bookkeeper

Result = TypeVar("Result")
Less = tuple[Choices, str]  # what is left of the choices, and what has changed, for the user

NOT_KEPT = "The dequantised weights are not kept any more: the same numbers to the bit, and every step takes longer."


def with_less(
    bookkeeper: Bookkeeper, run: Run, doing: str, work: Callable[[], Result], give_up: Callable[[Choices], Less]
) -> Result:
    """`work()`, which looks up the bookkeeper's choices, as often as `give_up` finds something; that raises Failure."""
    while True:
        with SurvivedShortage():
            return work()
        device_memory.free(bookkeeper.base.device)
        before = bookkeeper.choices
        after, what = give_up(before)
        _settle_for(bookkeeper, after)
        text = f"Out of memory while {doing} after step {run.step}. {what}"
        bookkeeper.say(
            Message(run_id=run.id, level="warn", message=text, data={"step": run.step} | _change(before, after))
        )


def cache_weights(bookkeeper: Bookkeeper) -> None:
    """Lay the dequantised weights beside the quantised ones, where that was chosen and there is room for it."""
    with SurvivedShortage():
        bookkeeper.base.cache_weights(bookkeeper.choices.cache_weights)
        return
    before = bookkeeper.choices
    _settle_for(bookkeeper, replace(before, cache_weights=False))
    device_memory.free(bookkeeper.base.device)
    for run_id in bookkeeper.identities.keys() - bookkeeper.say.endings.keys():
        text = f"Out of memory while the weights were dequantised. {NOT_KEPT}"
        bookkeeper.say(Message(run_id=run_id, level="warn", message=text, data=_change(before, bookkeeper.choices)))


def shorter_rows(corpus: Corpus, choices: Choices) -> Less:
    """For a validation. Raises Failure(OUT_OF_MEMORY)."""
    now, longest = choices.effective_validation_row_tokens, corpus.lengths().longest
    if (half := max(longest, now // 2)) < now:
        text = f"It begins again with rows of {half:,} tokens instead of {now:,}: the same loss, within rounding."
        return replace(choices, validation_row_tokens=half), text
    if choices.cache_weights:
        return replace(choices, cache_weights=False), f"It begins again. {NOT_KEPT}"
    text = (
        f"The validation file's longest document, of {longest:,} tokens, does not fit into memory beside the base "
        "model and the adapter. Shorten it, lower hyperparameters.context_length, or leave the validation file out."
    )
    raise Failure(Reason.OUT_OF_MEMORY, text, "hyperparameters.context_length")


def fewer_prompts(prompts: int, choices: Choices) -> Less:
    """For sample prompts, without which a run is as good as with them: at last it goes on without."""
    now = prompts if choices.prompts_at_once is None else choices.prompts_at_once
    if now > 1:
        half = (now + 1) // 2
        text = f"From here on {half} of the {prompts} prompts are answered at once instead of {now}."
        return replace(choices, prompts_at_once=half), text
    if choices.cache_weights:
        return replace(choices, cache_weights=False), NOT_KEPT
    text = "Not even one prompt fits, so none is answered from here on; what is learned does not depend on it."
    return replace(choices, prompts_at_once=0), text


def without_moments(run: Run, choices: Choices) -> Less:
    """For the last check of a run that is complete. Raises Failure(OUT_OF_MEMORY)."""
    if not run.optimizer.state and not choices.cache_weights:
        text = (
            f"The adapter of step {run.step} is saved, but there is too little memory to load it again beside the base "
            "model and to compare it, so it was not published. Lower lora.r, or use a worker with more memory."
        )
        raise Failure(Reason.OUT_OF_MEMORY, text, "lora.r")
    run.optimizer.state.clear()
    text = "It is done again without the optimizer's moments, which no step needs any more"
    text += f". {NOT_KEPT}" if choices.cache_weights else "."
    return replace(choices, cache_weights=False), text


def _settle_for(bookkeeper: Bookkeeper, choices: Choices) -> None:
    bookkeeper.choices = choices
    bookkeeper.base.cache_weights(choices.cache_weights)


def _change(before: Choices, after: Choices) -> dict[str, dict[str, int | bool | None]]:
    names = [name for name, value in vars(after).items() if value != getattr(before, name)]
    return {
        when: {name: getattr(each, name) for name in names} for when, each in (("before", before), ("after", after))
    }
