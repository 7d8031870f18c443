"""The declarative base of all tables: names of constraints, column types, and default times."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlalchemy import BigInteger, DateTime, MetaData, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    __allow_unmapped__ = True  # a plain attribute is no column: a service sets it for a response
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy declares it so)
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),  # None is stored as SQL NULL, never as JSON null
        list[str]: JSONB(none_as_null=True),
        list[dict[str, Any]]: JSONB(none_as_null=True),
    }


def core_table(model: type[Base]) -> Table:
    """The Core table of a model, for writes without an ORM object: they cost a third of those with one."""
    return cast(Table, model.__table__)


def now() -> Mapped[datetime]:
    """A time column whose default is the server's clock at the statement, not at the transaction's begin."""
    return mapped_column(server_default=func.clock_timestamp())


def sql_string_list(values: Any) -> str:
    """`'a', 'b'`: the values of an enum, sorted, for `IN (...)` of a check constraint."""
    return ", ".join(f"'{value}'" for value in sorted(values))
