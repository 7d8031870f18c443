"""What Tunery says to people, in one file: a change of a message is read as the diff of tests/sentences.json.

A test asserts codes and facts itself, and gives the sentences that it saw to the fixture `reviewed`. After a wanted
change `TUNERY_WRITE_SNAPSHOTS=1` writes the file again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

SENTENCES = Path(__file__).with_name("sentences.json")  # {id of a test: its sentences in the order of its calls}
WRITE = "TUNERY_WRITE_SNAPSHOTS"
Reviewed = Callable[[str], None]


@pytest.fixture
def reviewed(request: pytest.FixtureRequest) -> Iterator[Reviewed]:
    """A function that compares a sentence with the reviewed one of this test. Replace paths, ids and times before.

    After the test: every reviewed sentence was seen.
    """
    name = request.node.nodeid.removeprefix("tests/")
    if os.environ.get(WRITE):
        seen: list[str] = []
        yield seen.append
        _write(name, seen)
    else:
        missing = read_sentences().get(name, [])
        yield partial(compare, missing)
        assert missing == [], f"{SENTENCES.name} has sentences that the test did not see"


def compare(expected: list[str], sentence: str) -> None:
    """Take the first of the expected sentences, which must be this one."""
    assert [sentence] == expected[:1], f"{SENTENCES.name} has another sentence"
    del expected[0]


def read_sentences() -> dict[str, list[str]]:
    return json.loads(SENTENCES.read_text(encoding="utf-8"))


def _write(name: str, sentences: list[str]) -> None:
    """Replace the sentences of one test. Processes of one run take turns."""
    with SENTENCES.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = dict(sorted({**json.load(file), name: sentences}.items()))
        file.seek(0)
        file.truncate()
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
