"""What the page of a dataset says about a file of which a part was checked."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.pages.dataset_report import length_facts
from app.web.pages.datasets import LINE_NUMBER

REPORT: dict[str, Any] = {
    "tokens": {"total": 4_000, "trained": 1_000, "lengths": {"median": 40, "p99": 90, "max": 100}},
    "cut": {"count": 5},
    "duplicates": {"rows": 1},
    "coverage": {"complete": True, "rows": 100, "tokenized_rows": 100},
}


@pytest.mark.parametrize("text", ["0", "-1", "", "x", "9" * 5_000, "\u0663"])
def test_no_line_is_opened_that_no_file_has(text: str) -> None:
    assert LINE_NUMBER.fullmatch(text) is None
    assert LINE_NUMBER.fullmatch("49999")


def test_a_whole_file_has_the_tokens_of_an_epoch() -> None:
    facts = length_facts(REPORT)
    assert (facts["Rows"], facts["Tokens per epoch"]) == ("100", "4,000")
    assert facts["Truncated"] == "5 rows (5.0 %)"


def test_a_sample_has_the_tokens_and_the_share_of_its_rows() -> None:
    facts = length_facts(REPORT | {"coverage": {"complete": False, "rows": 100, "tokenized_rows": 50}})
    assert (facts["Rows read"], facts["Tokens of 50 rows"]) == ("100", "4,000")
    assert facts["Truncated"] == "5 rows (10.0 %)"
    assert "Tokens per epoch" not in facts
