"""Get, lock, list and store the rows of any table of a project. Raises what the API answers; never commits."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from app.db.tables import Base
from app.domain.error_text.json_text import as_json, unquoted
from app.errors import BadRequest, NotFound

Row = TypeVar("Row", bound=Base)


class Page(NamedTuple):
    """A page that a request asks for; with `rows` one more than its items, it is known whether another page follows."""

    rows: int
    after: str | None = None

    @property
    def limit(self) -> int:
        return self.rows - 1


def get(
    session: Session, table: type[Row], row_id: str, *scope: ColumnElement[bool], lock: bool = False, param: str = "id"
) -> Row:
    """The row with this id within `scope`, such as one project. `lock` reads it again, and lets no other transaction
    change it.

    Raises NotFound with the name of the resource.
    """
    query = select(table).where(table.id == row_id, *scope)  # type: ignore[attr-defined]
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise NotFound(f"No such {_name(table)}: {unquoted(row_id)}", param)
    return row


def page(
    session: Session,
    table: type[Row],
    limit: int,
    after: str | None,
    *scope: ColumnElement[bool],
    only: tuple[ColumnElement[bool], ...] = (),
    is_ascending: bool = False,
) -> list[Row]:
    """The rows within `scope` that match `only`, by default newest first; `after` is the last id of the page before.

    The row `after` needs not match `only`: its state may have changed meanwhile. Raises BadRequest if it is unknown.
    """
    query = select(table).where(*scope, *only)
    number = table.seq  # type: ignore[attr-defined]
    if after is not None:
        last = session.scalar(select(number).where(table.id == after, *scope))  # type: ignore[attr-defined]
        if last is None:
            raise unknown_cursor_error(_name(table), after)
        query = query.where(number > last if is_ascending else number < last)
    return list(session.scalars(query.order_by(number if is_ascending else number.desc()).limit(limit)))


def store(session: Session, row: Row, **values: Any) -> Row:
    """Write the row with these values, and return it with what the database has computed."""
    for name, value in values.items():
        setattr(row, name, value)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def unknown_cursor_error(kind: str, after: str) -> BadRequest:
    text = f"after: there is no {kind} {as_json(after)} here; give the id of the last item of the page before"
    return BadRequest(text, "after")


def count(session: Session, table: type[Row], *scope: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(*scope)) or 0


def _name(table: type[Base]) -> str:
    """`webhook endpoint` for WebhookEndpoint, `API key` for ApiKey."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", table.__name__).lower().replace("api ", "API ")
