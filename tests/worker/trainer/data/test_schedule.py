from __future__ import annotations

from app.domain.jobs.spec import Hyperparameters
from tests.worker.trainer.helpers import HYPERPARAMETERS
from worker.trainer.data.schedule import make_schedule


def knobs(**changes: object) -> Hyperparameters:
    return Hyperparameters.model_validate(HYPERPARAMETERS | changes)


class TestStepSchedule:
    def test_a_batch_is_exactly_as_many_examples_as_asked_and_the_last_of_an_epoch_is_the_rest(self) -> None:
        plan = make_schedule(knobs(batch_size=4, n_epochs=2), examples=10, seed=1)
        assert [len(plan.examples_of(step)) for step in range(plan.total_steps)] == [4, 4, 2, 4, 4, 2]

    def test_every_epoch_has_every_example_once_in_an_order_of_its_own(self) -> None:
        plan = make_schedule(knobs(batch_size=4, n_epochs=2), examples=10, seed=1)
        epochs = [[e for step in range(at, at + 3) for e in plan.examples_of(step)] for at in (0, 3)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
        assert epochs[0] != epochs[1]

    def test_a_validation_is_due_every_eval_steps_else_at_each_epochs_end_and_always_at_the_end(self) -> None:
        by_epoch, by_steps = (make_schedule(knobs(batch_size=4, eval_steps=every), 10, seed=1) for every in (None, 4))
        assert [step for step in range(7) if by_epoch.is_validation_due(step)] == [3, 6]
        assert [step for step in range(7) if by_steps.is_validation_due(step)] == [4, 6]

    def test_max_steps_replaces_the_epochs_also_beyond_them(self) -> None:
        assert make_schedule(knobs(max_steps=2), examples=10, seed=1).total_steps == 2
        long = make_schedule(knobs(batch_size=4, n_epochs=1, max_steps=7), examples=10, seed=1)
        assert long.total_steps == 7
        assert long.epoch(7) == 7 / 3

    def test_a_checkpoint_is_due_at_each_epochs_end_and_at_the_very_end(self) -> None:
        plan = make_schedule(knobs(batch_size=4, max_steps=7), examples=10, seed=1)
        assert [step for step in range(8) if plan.is_checkpoint_due(step)] == [3, 6, 7]
