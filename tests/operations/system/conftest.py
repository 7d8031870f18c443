from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.system import limited_process

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def fork_server_with_tests() -> Iterator[None]:
    """A fork server that can import the functions of tests, wherever that of earlier tests was started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(limited_process, "_server", None)
        yield
