from __future__ import annotations

import pytest

from app.domain.jobs.spec import Hyperparameters
from app.domain.planning import packing as layout
from app.domain.planning.packing import (
    Lengths,
    largest_row,
    mean_row,
    most_attended,
    packed,
    permutation,
    total_steps,
    trained_tokens,
    validations,
)

KNOBS = {
    "n_epochs": 2,
    "batch_size": 2,
    "learning_rate": 0.01,
    "learning_rate_multiplier": 1.0,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "context_length": 512,
}


def knobs(**changes: object) -> Hyperparameters:
    return Hyperparameters.model_validate(KNOBS | changes)


def lengths(*examples: tuple[int, ...]) -> Lengths:
    made = Lengths()
    for example in examples:
        made.add(example)
    return made


class TestPermutation:
    def test_is_a_function_of_seed_and_epoch_alone(self) -> None:
        first = list(permutation(50, 3, 0))
        permutation.cache_clear()
        assert list(permutation(50, 3, 0)) == first
        assert list(permutation(50, 3, 1)) != first
        assert list(permutation(50, 4, 0)) != first

    def test_has_every_example_once(self) -> None:
        assert sorted(permutation(50, 3, 2)) == list(range(50))


class TestPacked:
    def test_rows_hold_whole_documents_up_to_the_budget(self) -> None:
        rows = list(packed([(4, True), (4, True), (3, True), (9, True), (1, True)], 8))
        assert rows == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]

    def test_a_document_that_shares_no_row_is_alone(self) -> None:
        assert list(packed([(1, True), (1, False), (1, True), (1, True)], 8)) == [
            slice(0, 1), slice(1, 2), slice(2, 4)
        ]  # fmt: skip

    def test_without_documents_there_is_no_row(self) -> None:
        assert list(packed([], 8)) == []


class TestTrainedTokens:
    def test_is_every_token_times_the_epochs(self) -> None:
        assert trained_tokens(lengths((3,), (4, 5), (6,)), knobs(n_epochs=3), seed=1) == 3 * 18

    def test_counts_the_very_examples_of_a_run_that_ends_early(self) -> None:
        data = lengths((1,), (10,), (100,), (1000,))
        first_two = permutation(4, 7, 0)[:2]
        expected = sum((1, 10, 100, 1000)[example] for example in first_two)
        assert trained_tokens(data, knobs(max_steps=1), seed=7) == expected
        assert total_steps(knobs(max_steps=1), 4) == 1


class TestLargestRow:
    def test_is_the_fullest_row_of_any_step_of_any_epoch(self) -> None:
        data = lengths((30,), (20,), (10,), (40,))
        found = set()
        for seed in range(20):
            step, tokens = largest_row(data, knobs(), seed, row_tokens=100)
            order = [permutation(4, seed, epoch) for epoch in (0, 1)]
            steps = [order[at // 2][2 * (at % 2) : 2 * (at % 2) + 2] for at in range(4)]
            sums = [sum((30, 20, 10, 40)[example] for example in batch) for batch in steps]
            assert (step, tokens) == (sums.index(max(sums)), max(sums))
            found.add(tokens)
        assert len(found) > 1

    def test_no_row_is_longer_than_the_budget_but_one_of_one_document(self) -> None:
        assert largest_row(lengths((30,), (30,)), knobs(), 1, row_tokens=40)[1] == 30
        assert largest_row(lengths((30,), (90,)), knobs(), 1, row_tokens=40)[1] == 90

    def test_of_a_long_run_the_first_steps_are_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, seed = lengths((30,), (40,), (50,), (60,)), 1
        last = largest_row(data, knobs(batch_size=1, n_epochs=1), seed, row_tokens=100)
        assert last[1] == 60
        monkeypatch.setattr(layout, "SEARCHED_STEPS", last[0])
        assert largest_row(data, knobs(batch_size=1, n_epochs=1), seed, row_tokens=100)[1] < 60

    def test_there_is_none_without_examples(self) -> None:
        assert largest_row(lengths(), knobs(), 1, row_tokens=40) == (0, 0)


class TestMeanRow:
    def test_is_over_the_rows_of_the_steps(self) -> None:
        """Each step is one of two examples: 70 tokens in one row where they fit, else 30 and 40."""
        data = lengths((30,), (40,))
        assert mean_row(data, knobs(), 1, row_tokens=70) == 70
        assert mean_row(data, knobs(), 1, row_tokens=69) == 35
        assert mean_row(data, knobs(packing=False), 1, row_tokens=70) == 35

    def test_a_long_run_is_sampled(self) -> None:
        data = lengths(*[(10,)] * 2000)
        assert mean_row(data, knobs(n_epochs=50), 1, row_tokens=20) == 20

    def test_is_nothing_without_examples(self) -> None:
        assert mean_row(lengths(), knobs(), 1, 100) == 0


def test_validations_come_every_so_many_steps_else_at_each_epochs_end_and_at_the_very_end() -> None:
    assert validations(knobs(n_epochs=3), 5) == 3
    assert validations(knobs(max_steps=7), 5) == 3  # epochs of three steps, and the seventh
    assert validations(knobs(n_epochs=3, eval_steps=4), 5) == 3  # after 4, 8 and 9
    assert validations(knobs(n_epochs=3, eval_steps=3), 5) == 3


class TestLengths:
    def test_of_a_pair_each_side_sees_itself_alone(self) -> None:
        """Both stay in one row; of 200 and 300 tokens one sees 260 on average, not 500."""
        pairs = Lengths()
        pairs.add([200, 300], is_pair=True)
        assert (list(pairs.tokens), pairs.longest, pairs.attended) == ([500], 500, 260)
        assert lengths((200,), (300,)).attended == 260


class TestMostAttended:
    def test_is_of_the_row_in_which_most_sees_most(self) -> None:
        of = lengths((100,), (300,), (50,), (50,))
        assert most_attended(of, knobs(batch_size=4), 1, row_tokens=1000, longest=512) == 100**2 + 300**2 + 2 * 50**2
        assert most_attended(of, knobs(batch_size=1), 1, row_tokens=1000, longest=512) == 300**2

    def test_rows_with_a_longer_document_are_another_kernels(self) -> None:
        of = lengths((100,), (600,))
        assert most_attended(of, knobs(batch_size=1), 1, row_tokens=1000, longest=512) == 100**2
        assert most_attended(lengths(), knobs(), 1, row_tokens=1000, longest=512) == 0

    def test_the_sides_of_a_pair_do_not_see_each_other(self) -> None:
        pairs = Lengths()
        pairs.add([300, 300], is_pair=True)
        assert most_attended(pairs, knobs(batch_size=1), 1, row_tokens=1000, longest=512) == 2 * 300**2
