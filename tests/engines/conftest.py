from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.world import World, open_world


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with open_world() as world:
        yield world
