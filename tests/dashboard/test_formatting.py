"""Numbers have units; user text stays in its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web import formatting


@pytest.mark.parametrize(
    ("show", "texts"),
    [
        (
            formatting.duration,
            {None: "–", 0: "0 s", 0.4: "< 1 s", 59: "59 s", 90: "1 min 30 s", 3_599: "60 min", 7_260: "2 h 1 min",
             200_000: "2 d 8 h"},
        ),
        (formatting.size, {None: "–", 0: "0 B", 999: "999 B", 1_234_567: "1.2 MB", 80e9: "80.0 GB", 5e15: "5000 TB"}),
        (formatting.moment, {None: "–", 1_795_000_485: "2026-11-18 11:14 UTC"}),
        (formatting.exact_moment, {1_795_000_485: "2026-11-18 11:14:45 UTC"}),
        (formatting.short, {None: "–", 0.0004: "0.0004", 12_345.6: "1.235e+04"}),
        (formatting.per_second, {None: "–", 0.0004: "0.0 tokens/s", 0.4: "0.4 tokens/s", 12_345.6: "12,346 tokens/s"}),
    ],
)  # fmt: skip
def test_a_number_has_its_unit_and_its_digits(
    show: Callable[[float | None], str], texts: dict[float | None, str]
) -> None:
    assert {value: show(value) for value in texts} == texts


@given(st.text())
def test_shown_text_has_no_control_or_direction_character(text: str) -> None:
    shown = formatting.clean(text, 10_000)
    assert not any(ord(character) < 32 or "\u202a" <= character <= "\u202e" for character in shown)
    assert not any("\u2066" <= character <= "\u2069" for character in shown)


def test_letters_keep_their_joiners_and_marks() -> None:
    persian, marked = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "e\u0323\u0302"
    assert formatting.clean(persian) == persian
    assert formatting.clean_lines(f"{marked}\n", 10) == f"{marked}\n"


def test_a_pile_of_marks_does_not_cover_other_lines() -> None:
    shown = formatting.clean("e" + "\u0301" * 80)
    assert shown == "e" + "\u0301" * 6 + "\\u0301" * 74


def test_a_long_text_is_cut_with_an_ellipsis() -> None:
    assert formatting.clean("x" * 10_000) == "x" * formatting.MAX_LINE_CHARACTERS + "…"
