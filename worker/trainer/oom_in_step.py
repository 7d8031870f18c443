"""Out of memory in a step: back to its start, laid out smaller, the same step again.

Nothing has been stepped yet, so nothing is lost but time: gradients are dropped, each run's dropout generator is put
back, and the effective batch stays what it was. Results stay equal within rounding, and an event says so. Dropout
draws its masks row by row: other rows, other masks, which the event says as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from app.domain.events import Message
from app.domain.modes import Mode, Recompute
from worker.trainer import device_memory, oom_between_steps, parallel
from worker.trainer.bookkeeping import Bookkeeper
from worker.trainer.emit import Ledger, Pulse
from worker.trainer.failures import SurvivedShortage, out_of_memory
from worker.trainer.model import Base
from worker.trainer.recompute import Recomputation
from worker.trainer.state import Run

GROWTH = 1.1  # of the planned peak, which gaps in the heap may add before they are given back

Result = TypeVar("Result")
DEGREES: Sequence[Recompute] = ("nothing", "elementwise", "layers", "everything")  # each takes less than the one before
NEXT: dict[Recompute, Recompute] = {"nothing": "elementwise", "elementwise": "everything", "layers": "everything"}


class MemoryLayout:
    """The mode in force. It changes between two tries of a step, always to something smaller."""

    def __init__(self, base: Base, bookkeeper: Bookkeeper, recomputation: Recomputation) -> None:
        self._base = base
        self._bookkeeper = bookkeeper
        self._recomputation = recomputation
        self._apply()

    @property
    def row_tokens(self) -> int:
        return self._bookkeeper.choices.row_tokens

    def until_it_fits(self, runs: Sequence[Run], work: Callable[[int], Result]) -> Result:
        """`work(row_tokens)`, as often as there is something left to make smaller. Raises Failure(OUT_OF_MEMORY)."""
        generators = [run.adapter.generator for run in runs]
        states, steps = [each.get_state() for each in generators], [run.step for run in runs]
        while True:
            with SurvivedShortage(lambda: steps == [run.step for run in runs]):
                return work(self.row_tokens)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            self._free(runs)
            self._shrink(runs)

    def agree(self) -> None:
        """Several processes: what is too much for one is so for all, and the first one's choices are everybody's."""
        agreed = smallest(parallel.gather(self._bookkeeper.choices.mode))
        if agreed != self._bookkeeper.choices.mode:
            self._bookkeeper.choices = self._bookkeeper.choices.laid_out(agreed)
            self._apply()

    def tidying(self, pulse: Pulse) -> Pulse:
        """A pulse that, between two rows, gives back what they left in the heap beyond what any of them needs."""

        def beat(doing: str) -> None:
            pulse(doing)
            if peak_bytes := self._bookkeeper.choices.peak_bytes:  # older snapshots know of none
                device_memory.give_back(
                    self._base.device, min(int(GROWTH * peak_bytes), device_memory.brim_bytes(self._base.device))
                )

        return beat

    def _free(self, runs: Sequence[Run]) -> None:
        self._recomputation.forget()
        for run in runs:
            run.forget_gradients()
            if not run.step:
                run.optimizer.state.clear()  # half of the moments, should it be they that did not fit
        device_memory.free(self._base.device)

    def _shrink(self, runs: Sequence[Run]) -> None:
        before, least = self._bookkeeper.choices.mode, max(run.corpus.lengths().longest for run in runs)
        after = smaller(before, least, can_recompute=bool(self._recomputation.layers))
        if after is None:
            raise out_of_memory(runs[0].spec)
        self._bookkeeper.choices = self._bookkeeper.choices.laid_out(after)
        self._apply()
        tell_repaired(self._bookkeeper.say, runs, before, after)

    def _apply(self) -> None:
        mode = self._bookkeeper.choices.mode
        self._recomputation.set(mode.recompute, mode.recompute_layers)
        oom_between_steps.cache_weights(self._bookkeeper)


def smallest(modes: Sequence[Mode]) -> Mode:
    """Of each choice the one that takes the least memory."""
    recompute = max((mode.recompute for mode in modes), key=DEGREES.index)
    layers = max(mode.recompute_layers for mode in modes) if recompute == "layers" else 0
    return Mode(
        row_tokens=min(mode.row_tokens for mode in modes),
        recompute=recompute,
        recompute_layers=layers,
        cache_weights=all(mode.cache_weights for mode in modes),
    )


def smaller(mode: Mode, longest_document: int, can_recompute: bool = True) -> Mode | None:
    """Rows half as long, one degree more of recomputation, no cache; None where nothing is left to give."""
    after = Mode(
        row_tokens=max(longest_document, mode.row_tokens // 2),
        recompute=NEXT.get(mode.recompute, mode.recompute) if can_recompute else mode.recompute,
    )
    if mode.row_tokens < after.row_tokens:  # a row of one long document is that document anyway
        after = after.model_copy(update={"row_tokens": mode.row_tokens})
    return after if after != mode else None


def tell_repaired(say: Ledger, runs: Sequence[Run], before: Mode, after: Mode) -> None:
    for run in runs:
        text = (
            f"Out of memory in step {run.step + 1}, with {before}. The step is made again with {after}; "
            f"{_what_stays(run, before, after)}."
        )
        data = {"step": run.step + 1, "before": before.model_dump(), "after": after.model_dump()}
        say(Message(run_id=run.id, level="warn", message=text, data=data))


def _what_stays(run: Run, before: Mode, after: Mode) -> str:
    if run.adapter.dropout and after.row_tokens != before.row_tokens:
        return "its examples stay the same, and the result within rounding but for dropout: other rows draw other masks"
    return "its examples and the result stay the same, within rounding"
