from __future__ import annotations

import pytest

from app.domain.jobs.spec import Hyperparameters
from app.domain.planning import packing
from app.domain.planning.packing import (
    SequenceLengths,
    largest_batch,
    max_attention_cost,
    mean_packed_length,
    pack,
    permutation,
    total_steps,
    trained_tokens,
    validation_count,
)

HYPERPARAMETERS = {
    "n_epochs": 2, "batch_size": 2, "learning_rate": 0.01, "learning_rate_multiplier": 1.0, "warmup_ratio": 0.0,
    "weight_decay": 0.0, "max_grad_norm": 1.0, "lr_scheduler_type": "linear", "context_length": 512,
}  # fmt: skip


def hyperparameters(**changes: object) -> Hyperparameters:
    return Hyperparameters.model_validate(HYPERPARAMETERS | changes)


def lengths(*examples: tuple[int, ...]) -> SequenceLengths:
    made = SequenceLengths()
    for example in examples:
        made.add(example)
    return made


class TestPermutation:
    def test_the_order_is_a_function_of_seed_and_epoch_alone(self) -> None:
        first = list(permutation(50, 3, 0))
        permutation.cache_clear()
        assert list(permutation(50, 3, 0)) == first
        assert list(permutation(50, 3, 1)) != first
        assert list(permutation(50, 4, 0)) != first

    def test_the_order_has_every_example_once(self) -> None:
        assert sorted(permutation(50, 3, 2)) == list(range(50))


class TestPack:
    def test_batches_hold_complete_documents_up_to_the_budget(self) -> None:
        rows = list(pack([(4, True), (4, True), (3, True), (9, True), (1, True)], 8))
        assert rows == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]

    def test_a_document_that_may_not_share_a_batch_has_its_own(self) -> None:
        assert list(pack([(1, True), (1, False), (1, True), (1, True)], 8)) == [
            slice(0, 1), slice(1, 2), slice(2, 4)
        ]  # fmt: skip


class TestTrainedTokens:
    def test_the_trained_tokens_are_every_token_times_the_epochs(self) -> None:
        assert trained_tokens(lengths((3,), (4, 5), (6,)), hyperparameters(n_epochs=3), seed=1) == 3 * 18

    def test_counts_exactly_the_examples_of_a_run_with_max_steps(self) -> None:
        data = lengths((1,), (10,), (100,), (1000,))
        first_two = permutation(4, 7, 0)[:2]
        expected = sum((1, 10, 100, 1000)[example] for example in first_two)
        assert trained_tokens(data, hyperparameters(max_steps=1), seed=7) == expected
        assert total_steps(hyperparameters(max_steps=1), 4) == 1


class TestLargestBatch:
    def test_the_largest_batch_is_that_of_all_steps_of_all_epochs(self) -> None:
        data = lengths((30,), (20,), (10,), (40,))
        found = set()
        for seed in range(20):
            step, tokens = largest_batch(data, hyperparameters(), seed, row_tokens=100)
            order = [permutation(4, seed, epoch) for epoch in (0, 1)]
            steps = [order[at // 2][2 * (at % 2) : 2 * (at % 2) + 2] for at in range(4)]
            sums = [sum((30, 20, 10, 40)[example] for example in batch) for batch in steps]
            assert (step, tokens) == (sums.index(max(sums)), max(sums))
            found.add(tokens)
        assert len(found) > 1

    def test_only_a_batch_of_one_document_exceeds_the_budget(self) -> None:
        assert largest_batch(lengths((30,), (30,)), hyperparameters(), 1, row_tokens=40)[1] == 30
        assert largest_batch(lengths((30,), (90,)), hyperparameters(), 1, row_tokens=40)[1] == 90

    def test_the_first_steps_of_a_long_run_are_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, seed = lengths((30,), (40,), (50,), (60,)), 1
        last = largest_batch(data, hyperparameters(batch_size=1, n_epochs=1), seed, row_tokens=100)
        assert last[1] == 60
        monkeypatch.setattr(packing, "SEARCHED_STEPS", last[0])
        assert largest_batch(data, hyperparameters(batch_size=1, n_epochs=1), seed, row_tokens=100)[1] < 60


class TestMeanPackedLength:
    def test_the_mean_length_is_that_of_the_batches_of_the_steps(self) -> None:
        """Each step is one of two examples: 70 tokens in one row where they fit, else 30 and 40."""
        data = lengths((30,), (40,))
        assert mean_packed_length(data, hyperparameters(), 1, row_tokens=70) == 70
        assert mean_packed_length(data, hyperparameters(), 1, row_tokens=69) == 35
        assert mean_packed_length(data, hyperparameters(packing=False), 1, row_tokens=70) == 35

    def test_a_long_run_is_sampled(self) -> None:
        data = lengths(*[(10,)] * 2000)
        assert mean_packed_length(data, hyperparameters(n_epochs=50), 1, row_tokens=20) == 20


def test_validations_run_every_eval_steps_or_epoch_and_at_the_end() -> None:
    assert validation_count(hyperparameters(n_epochs=3), 5) == 3
    assert validation_count(hyperparameters(max_steps=7), 5) == 3  # epochs of three steps, and the seventh
    assert validation_count(hyperparameters(n_epochs=3, eval_steps=4), 5) == 3  # after 4, 8 and 9
    assert validation_count(hyperparameters(n_epochs=3, eval_steps=3), 5) == 3


class TestSequenceLengths:
    def test_the_answers_of_a_pair_do_not_attend_to_each_other(self) -> None:
        """Both stay in one row; of 200 and 300 tokens one sees 260 on average, not 500."""
        pairs = SequenceLengths()
        pairs.add([200, 300], is_pair=True)
        assert (list(pairs.tokens), pairs.max_tokens, pairs.mean_attended_tokens) == ([500], 500, 260)
        assert lengths((200,), (300,)).mean_attended_tokens == 260


class TestMaxAttentionCost:
    def cost(self, of: SequenceLengths, batch_size: int) -> int:
        return max_attention_cost(of, hyperparameters(batch_size=batch_size), 1, 1000, max_document_tokens=512)

    def test_the_attention_cost_is_that_of_the_batch_with_the_largest_sum(self) -> None:
        of = lengths((100,), (300,), (50,), (50,))
        assert self.cost(of, batch_size=4) == 100**2 + 300**2 + 2 * 50**2
        assert self.cost(of, batch_size=1) == 300**2

    def test_batches_with_a_longer_document_do_not_count(self) -> None:
        assert self.cost(lengths((100,), (600,)), batch_size=1) == 100**2
        assert self.cost(lengths(), batch_size=1) == 0

    def test_the_answers_of_a_pair_count_separately(self) -> None:
        pairs = SequenceLengths()
        pairs.add([300, 300], is_pair=True)
        assert self.cost(pairs, batch_size=1) == 2 * 300**2
