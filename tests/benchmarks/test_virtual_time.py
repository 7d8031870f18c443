from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from benchmarks.virtual_time import MONDAY, set_clock, virtual_database


def test_the_clock_of_a_migrated_database_is_the_one_that_was_set() -> None:
    with virtual_database() as engine, Session(engine) as session:
        set_clock(session, 60.0)
        assert session.scalar(select(func.clock_timestamp())) == MONDAY + timedelta(seconds=60)
