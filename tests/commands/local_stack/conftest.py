from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import open_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that PostgreSQL's account can pass through, which pytest's tmp_path keeps out."""
    with open_directory() as directory:
        yield directory
