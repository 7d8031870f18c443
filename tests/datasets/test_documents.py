"""What fits into the context length, and what counts at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets.documents import PREFERRED, REJECTED, Document, exceeds_context, truncate
from app.domain.jobs.spec import DataParameters


def text_of(tokens: int) -> Document:
    return Document(1, list(range(tokens)), [False] + [True] * (tokens - 1), is_text=True)


def answer(side: int, *tokens: int, prompt: int = 2) -> Document:
    return Document(1, [0] * prompt + list(tokens), [False] * prompt + [True] * len(tokens), side)


class TestPlainText:
    @given(st.integers(2, 60), st.integers(2, 20))
    def test_a_split_text_learns_every_token_but_the_first_once(self, length: int, context_length: int) -> None:
        pieces = truncate([text_of(length)], DataParameters(context_length=context_length))
        assert all(2 <= len(piece) <= context_length for piece in pieces)
        learned = [t for piece in pieces for t, labelled in zip(piece.tokens, piece.labelled, strict=True) if labelled]
        assert learned == list(range(1, length))
        assert all(len(piece) == context_length for piece in pieces[:-1])

    def test_a_plain_text_never_exceeds_the_context(self) -> None:
        assert not exceeds_context(text_of(30), 10)
        assert exceeds_context(answer(0, *range(30)), 10)

    def test_a_plain_text_of_one_token_teaches_nothing(self) -> None:
        assert truncate([text_of(1)], DataParameters(context_length=10)) == []


def test_a_conversation_is_cut_at_its_end() -> None:
    whole = answer(0, 1, 2, 3)
    assert truncate([whole], DataParameters(context_length=4)) == [answer(0, 1, 2)]
    assert truncate([whole], DataParameters(context_length=5)) == [whole]


class TestPairs:
    def test_a_pair_counts_with_both_sides(self) -> None:
        pair = [answer(PREFERRED, 1, 2), answer(REJECTED, 3)]
        assert truncate(pair, DataParameters(method="dpo", context_length=10)) == pair

    @pytest.mark.parametrize(
        "pair",
        [
            [answer(PREFERRED, 1, 2), answer(REJECTED)],
            [answer(PREFERRED), answer(REJECTED, 1)],
            [answer(PREFERRED, 1, 2), answer(REJECTED, 3, prompt=9)],
            [answer(PREFERRED, 1, 2), answer(REJECTED, 1, 2)],
            [answer(PREFERRED, *range(20), 1), answer(REJECTED, *range(20), 2)],
        ],
        ids=["nothing rejected", "nothing preferred", "one beyond the cut", "the same", "the same up to the cut"],
    )
    def test_a_pair_without_two_answers_to_compare_contributes_nothing(self, pair: list[Document]) -> None:
        assert truncate(pair, DataParameters(method="dpo", context_length=8)) == []


def test_an_answer_that_is_judged_alone_needs_no_other() -> None:
    alone = [answer(REJECTED, 1, 2)]
    assert truncate(alone, DataParameters(method="kto", context_length=8)) == alone
