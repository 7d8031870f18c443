"""Preference pairs of GSM8K: the rejected answer is never the preferred one."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.preferences import RESULT, write_pairs

CHATS = Path(__file__).parents[2] / "benchmarks" / "gsm8k-valid-64.jsonl"


def test_every_second_pair_has_another_result_and_the_others_another_answer(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    made = write_pairs(CHATS, path, 24)
    assert [json.loads(line) for line in path.read_text().splitlines()] == made
    for number, pair in enumerate(made):
        preferred, rejected = (pair[name][0]["content"] for name in ("preferred_output", "non_preferred_output"))
        assert preferred != rejected
        has_the_same_steps = RESULT.sub("", preferred).strip() == RESULT.sub("", rejected).strip()
        assert has_the_same_steps == (number % 2 == 0)
