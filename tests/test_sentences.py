"""tests/sentences.json has sentences of tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sentences import SENTENCES, WRITE, read_sentences

TESTS = Path(__file__).parent


def test_every_sentence_belongs_to_a_test_that_exists() -> None:
    unknown = []
    for name in read_sentences():
        file, _, rest = name.partition("::")
        function = rest.partition("[")[0].rpartition("::")[2]
        path = TESTS / file
        if not path.is_file() or not re.search(rf"def {function}\(", path.read_text(encoding="utf-8")):
            unknown.append(name)
    assert unknown == [], f"remove them from {SENTENCES.name}"


def test_a_sentence_that_was_not_reviewed_fails(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.delenv(WRITE, raising=False)
    reviewed = request.getfixturevalue("reviewed")
    with pytest.raises(AssertionError, match=SENTENCES.name):
        reviewed("A sentence that nobody has read.")
