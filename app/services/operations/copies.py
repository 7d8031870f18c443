"""A service that `tunery restore --copy` made sends and delivers nothing; what would wait for that is refused."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.db.operations import status
from app.errors import BadRequest


def refuse_in_copy(session: Session, action: str) -> None:
    """Raises BadRequest in a copy."""
    if status.is_copy(session):
        raise BadRequest(f"This service is a restored copy (`tunery restore --copy`), which {action}.")
