"""The split: stratified, seeded, and rows of equal input on one side."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.datasets.held_out import CannotSplit, RowKeys, choose_held_out

ROWS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abcd")), min_size=2, max_size=200)
PERCENT, SEED = st.integers(1, 50), st.integers(0, 2**31 - 1)


@given(ROWS, PERCENT, SEED, st.booleans())
def test_both_files_have_rows_and_no_input_is_in_both(
    rows: list[tuple[int, str]], percent: int, seed: int, is_stratified: bool
) -> None:
    inputs, labels = [key for key, _ in rows], [label for _, label in rows] if is_stratified else None
    if len(set(inputs)) < 2:
        with pytest.raises(CannotSplit):
            choose_held_out(inputs, labels, percent, seed)
        return
    held_out = choose_held_out(inputs, labels, percent, seed)
    assert held_out == choose_held_out(inputs, labels, percent, seed)
    sides = [{key for key, side in zip(inputs, held_out, strict=True) if side == chosen} for chosen in (0, 1)]
    assert all(sides)
    assert not sides[0] & sides[1]


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=300), PERCENT, SEED)
def test_without_duplicates_each_label_has_its_share(labels: list[str], percent: int, seed: int) -> None:
    held_out = choose_held_out(range(len(labels)), labels, percent, seed)
    totals, kept = Counter(labels), Counter(label for label, side in zip(labels, held_out, strict=True) if side)
    assert sum(held_out) <= max(1, round(len(labels) * percent / 100 + 1e-9))
    for label, total in totals.items():
        assert abs(kept[label] - total * percent / 100) <= 1
        assert total == 1 or kept[label] < total


def test_the_number_of_rows_is_the_rounded_share() -> None:
    sizes = {count: sum(choose_held_out(range(count), None, 10, 0)) for count in (2, 14, 15, 120, 1000)}
    assert sizes == {2: 1, 14: 1, 15: 2, 120: 12, 1000: 100}


def test_a_seed_chooses_the_same_rows_for_ever() -> None:
    """Recorded: another choice would move rows of a file that is sent again from one side to the other."""
    chosen = choose_held_out(range(20), ["a", "b"] * 10, 20, 7)
    assert [place for place, side in enumerate(chosen) if side] == [2, 5, 6, 9]
    assert chosen != choose_held_out(range(20), ["a", "b"] * 10, 20, 8)


def keys_of(*rows: dict[str, object]) -> RowKeys:
    keys = RowKeys()
    for row in rows:
        keys.add(row)
    return keys


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize(
    ("rows", "grader", "are_labels"),
    [
        ([chat(f"q{n}", "yes" if n % 2 else "no") for n in range(6)], "label_accuracy", True),
        ([chat(f"q{n}", f"{n % 2}") for n in range(5)], "text_similarity", False),  # fewer than three rows a label
        ([chat(f"q{n}", "yes") for n in range(6)], "text_similarity", False),
        ([chat(f"q{n}", f'{{"a": {n % 2}}}') for n in range(6)], "json_fields", True),
        ([{"prompt": f"{n}", "completion": "ab"[n % 2]} for n in range(6)], "label_accuracy", True),
        ([{"prompt": f"{n}", "completion": "a", "label": n % 2 == 0} for n in range(6)], None, True),
        ([{"text": f"{n}"} for n in range(6)], None, False),
        ([chat(f"q{n}", "long " * 50) for n in range(6)] * 2, "text_similarity", False),
        ([chat(f"q{n}", f"label {n % 101}") for n in range(303)], "text_similarity", False),
    ],
)
def test_few_short_outputs_are_labels(rows: list[dict[str, object]], grader: str | None, are_labels: bool) -> None:
    keys = keys_of(*rows)
    assert (keys.grader, keys.are_labels) == (grader, are_labels)


def test_white_space_letter_case_and_the_answer_make_no_other_input() -> None:
    first, *others = keys_of(
        chat("Where is it?", "a"), chat(" where  is\nit? ", "b"), {"messages": chat("WHERE IS IT?", "c")["messages"]}
    ).inputs
    assert others == [first, first]
    assert len(set(keys_of(chat("x", "a"), chat("y", "a"), {"prompt": "x", "completion": "a"}).inputs)) == 3
