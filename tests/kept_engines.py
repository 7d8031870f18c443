"""Engines that outlive a test. A new engine compiles every statement again, and a new connection reads the catalogue
again: together half the processor time of a short test with rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Engine, event

from app.db.engine import make_engine

APPLICATION_NAME = "kept"


@cache
def keep_engine(owner: str, database_url: str, pool_size: int = 5, max_overflow: int = 5) -> Engine:
    """The engine of `owner`, made once in this process. Its `dispose` keeps the connections for the next test.

    Each owner has its own, so that the rows that a test reads do not take a connection of the code under test.
    """
    engine = make_engine(database_url, pool_size, max_overflow)
    event.listen(engine, "do_connect", _name_connection, insert=True)  # before the listener that connects
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


def _name_connection(_dialect: Any, _record: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
    keywords["application_name"] = APPLICATION_NAME
