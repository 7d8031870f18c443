"""Connections of kept engines have the name by which the start of a test spares them."""

from __future__ import annotations

from sqlalchemy import Engine, text

from tests.kept_engines import APPLICATION_NAME


def test_a_kept_engine_names_its_connections(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT current_setting('application_name')")) == APPLICATION_NAME
