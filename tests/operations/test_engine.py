from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, select, text

from app.db import engine as engine_module
from app.db.engine import (
    DATABASE_UNAVAILABLE,
    TimeLimitedConnection,
    make_engine,
    make_sessions,
    remove_time_limits,
    transaction,
)
from app.db.tables import Project
from tests.factories import make_project


def test_every_connection_has_timeouts_of_statements_and_idle_transactions(database_url: str) -> None:
    engine = make_engine(database_url)
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    with engine.connect() as connection:
        limits = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]
    engine.dispose()
    assert limits == ["30s", "20s"]


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
        with pytest.raises(DATABASE_UNAVAILABLE):
            connection.execute(locked)
        assert connection.invalidated
    for each in (frozen, waiting):
        each.dispose()


class TestAServerThatHangs:
    def test_ends_the_wait_for_its_answer_and_the_connection(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = make_engine(database_url)
        with engine.connect() as connection:
            monkeypatch.setattr(TimeLimitedConnection, "answer_timeout_seconds", 0.05)
            with pytest.raises(DATABASE_UNAVAILABLE, match=r"within 0\.05 s"):
                connection.execute(text("SELECT pg_sleep(1)"))
            assert connection.invalidated
        engine.dispose()

    def test_does_not_limit_a_migration(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = make_engine(database_url)
        monkeypatch.setattr(TimeLimitedConnection, "answer_timeout_seconds", 0.05)
        with engine.connect() as connection:
            remove_time_limits(connection)
            connection.execute(text("SELECT pg_sleep(0.2)"))
            assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
        engine.dispose()


class TestAConnectionOfThePool:
    @pytest.fixture
    def alone(self, database_url: str) -> Iterator[Engine]:
        engine = make_engine(database_url, pool_size=1, max_overflow=0)
        yield engine
        engine.dispose()

    def test_used_a_moment_ago_is_lent_without_a_round_trip(
        self, alone: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid = pid_of(alone)
        monkeypatch.setattr(alone.dialect, "do_ping", lambda *_: pytest.fail("it was pinged"))
        assert pid_of(alone) == pid

    def test_idle_for_a_while_is_pinged(self, alone: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        pings, ping = [], alone.dialect.do_ping
        monkeypatch.setattr(engine_module, "PING_AFTER_IDLE_SECONDS", 0.0)
        monkeypatch.setattr(alone.dialect, "do_ping", lambda connection: (pings.append(1), ping(connection))[1])
        assert pid_of(alone) == pid_of(alone)
        assert pings == [1]

    @pytest.mark.parametrize("ping_after_seconds", [0.0, 3600.0])
    def test_whose_server_has_ended_it_is_replaced_whenever_it_was_used(
        self, alone: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch, ping_after_seconds: float
    ) -> None:
        monkeypatch.setattr(engine_module, "PING_AFTER_IDLE_SECONDS", ping_after_seconds)
        pid = pid_of(alone)
        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        assert pid_of(alone) != pid


def pid_of(engine: Engine) -> int:
    """Of the server's process behind the connection that is lent."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
