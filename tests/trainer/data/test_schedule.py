from __future__ import annotations

from app.domain.jobs.spec import Hyperparameters
from tests.trainer.helpers import HYPERPARAMETERS
from worker.trainer.data.schedule import make_schedule


def hyperparameters(**changes: object) -> Hyperparameters:
    return Hyperparameters.model_validate(HYPERPARAMETERS | changes)


class TestStepSchedule:
    def test_a_batch_has_batch_size_examples_and_the_last_of_an_epoch_the_rest(self) -> None:
        schedule = make_schedule(hyperparameters(batch_size=4, n_epochs=2), examples=10, seed=1)
        assert [len(schedule.examples_of(step)) for step in range(schedule.total_steps)] == [4, 4, 2, 4, 4, 2]

    def test_every_epoch_has_every_example_once_in_an_order_of_its_own(self) -> None:
        schedule = make_schedule(hyperparameters(batch_size=4, n_epochs=2), examples=10, seed=1)
        epochs = [[e for step in range(at, at + 3) for e in schedule.examples_of(step)] for at in (0, 3)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
        assert epochs[0] != epochs[1]

    def test_a_validation_is_due_every_eval_steps_else_after_each_epoch_and_always_after_the_last_step(self) -> None:
        by_epoch, by_steps = (
            make_schedule(hyperparameters(batch_size=4, eval_steps=every), 10, seed=1) for every in (None, 4)
        )
        assert [step for step in range(7) if by_epoch.is_validation_due(step)] == [3, 6]
        assert [step for step in range(7) if by_steps.is_validation_due(step)] == [4, 6]

    def test_max_steps_replaces_the_epochs_also_beyond_them(self) -> None:
        assert make_schedule(hyperparameters(max_steps=2), examples=10, seed=1).total_steps == 2
        long = make_schedule(hyperparameters(batch_size=4, n_epochs=1, max_steps=7), examples=10, seed=1)
        assert long.total_steps == 7
        assert long.epoch(7) == 7 / 3

    def test_a_checkpoint_is_due_after_each_epoch_and_after_the_last_step(self) -> None:
        schedule = make_schedule(hyperparameters(batch_size=4, max_steps=7), examples=10, seed=1)
        assert [step for step in range(8) if schedule.is_checkpoint_due(step)] == [3, 6, 7]
