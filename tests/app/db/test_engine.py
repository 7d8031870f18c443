from __future__ import annotations

import pytest
from sqlalchemy import create_engine, select, text

from app.db import engine as engine_module
from app.db.engine import make_engine, make_sessions, transaction
from app.db.tables import Project
from tests.factories import make_project
from worker.lease import DATABASE_AWAY


def test_every_connection_gives_up_a_transaction_that_stands_still(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        limit = connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one()
    engine.dispose()
    assert limit == "20s"


def test_a_frozen_process_keeps_no_row_locked(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = engine_module.CONNECT_ARGS["options"].replace("=20000", "=50")
    monkeypatch.setitem(engine_module.CONNECT_ARGS, "options", options)
    frozen = make_engine(database_url)
    with transaction(make_sessions(frozen)) as session:
        make_project(session)
    locked = select(Project.id).with_for_update()
    waiting = create_engine(frozen.url, connect_args={"options": "-c lock_timeout=10s"})
    with frozen.connect() as connection:
        connection.execute(locked)
        with waiting.begin() as other:
            assert other.execute(locked).one()
        with pytest.raises(DATABASE_AWAY):
            connection.execute(locked)
        assert connection.invalidated
    for each in (frozen, waiting):
        each.dispose()
