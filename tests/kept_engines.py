"""Engines that outlive a test. A new engine compiles every statement again, and a new connection reads the catalogue
again: together half the processor time of a short test with rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType

import pytest
from sqlalchemy import Engine, make_url

from app.db.engine import make_engine

APPLICATION_NAME = "kept"


@cache
def keep_engine(owner: str, database_url: str, pool_size: int = 5, max_overflow: int = 5) -> Engine:
    """The engine of `owner`, made once in this process. Its `dispose` keeps the connections for the next test.

    Each owner has its own, so that the rows that a test reads do not take a connection of the code under test.
    """
    named = make_url(database_url).update_query_dict({"application_name": APPLICATION_NAME})
    engine = make_engine(named.render_as_string(hide_password=False), pool_size, max_overflow)
    engine.dispose = lambda close=True: None  # type: ignore[method-assign]
    _engines.append(engine)
    return engine


@contextmanager
def kept_engines(module: ModuleType) -> Iterator[None]:
    """Within the block, `make_engine` of `module` returns a kept engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_engine", partial(keep_engine, module.__name__))
        yield


def close_kept_engines() -> None:
    while _engines:
        Engine.dispose(_engines.pop())
    keep_engine.cache_clear()


_engines: list[Engine] = []
