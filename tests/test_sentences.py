"""tests/sentences.json has sentences of tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.sentences import SENTENCES, read_sentences

TESTS = Path(__file__).parent


def test_every_sentence_belongs_to_a_test_that_exists() -> None:
    unknown = []
    for name in read_sentences():
        file, _, rest = name.partition("::")
        *classes, function = rest.partition("[")[0].split("::")
        source = (TESTS / file).read_text(encoding="utf-8") if (TESTS / file).is_file() else ""
        defined = [rf"^class {each}\b" for each in classes] + [rf"def {function}\("]
        if not all(re.search(each, source, re.MULTILINE) for each in defined):
            unknown.append(name)
    assert unknown == [], f"remove them from {SENTENCES.name}"
