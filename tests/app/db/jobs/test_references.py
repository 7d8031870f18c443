"""What a request for a job names is found if the project may see it, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event, func, text, update

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.jobs import references
from app.db.jobs.references import JobReferences
from app.db.tables import BaseModelRow, File, Project
from app.storage import LocalStorage
from tests.factories import make_file, make_project

pytestmark = pytest.mark.usefixtures("base_model")


@pytest.fixture
def file_ids(sessions: Sessions, storage: LocalStorage, project: Project) -> tuple[str, str]:
    with transaction(sessions) as session:
        return make_file(session, storage, project).id, make_file(session, storage, project).id


def found_ids(found: JobReferences) -> tuple[str | None, str | None, str | None]:
    rows = (found.training_file, found.validation_file)
    return found.base and found.base.name, *(row and row.id for row in rows)  # type: ignore[return-value]


def test_rows_of_the_project_are_found_in_one_statement(
    engine: Engine, sessions: Sessions, project: Project, file_ids: tuple[str, str]
) -> None:
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    event.listen(engine, "before_cursor_execute", note)
    with transaction(sessions) as session:
        found = references.load_job_references(session, project.id, "tiny", *file_ids)
    event.remove(engine, "before_cursor_execute", note)
    assert len(sent) == 1
    assert (found.project.id, *found_ids(found)) == (project.id, "tiny", *file_ids)


def test_rows_that_the_project_may_not_use_are_not_found(
    sessions: Sessions, project: Project, file_ids: tuple[str, str]
) -> None:
    first, second = file_ids
    with transaction(sessions) as session:
        other = make_project(session, "other")
        session.execute(update(BaseModelRow).values(project_id=project.id))
        find = references.load_job_references
        assert found_ids(find(session, other.id, "tiny", first, second)) == (None, None, None)
        assert found_ids(find(session, project.id, "unknown", first, first)) == (None, first, first)
        assert found_ids(find(session, project.id, "tiny", first, None)) == ("tiny", first, None)
        files.delete(session, session.get_one(File, first))
        expired = func.clock_timestamp() - text("interval '1 s'")
        session.execute(update(File).where(File.id == second).values(expires_at=expired))
        assert found_ids(find(session, project.id, "tiny", first, second)) == ("tiny", None, None)
