"""What a request for a job names is found if the project may see it, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event, func, text, update

from app.db.engine import Sessions, transaction
from app.db.files import files
from app.db.jobs import references
from app.db.jobs.references import JobReferences
from app.db.tables import BaseModelRow, File, Project
from app.storage import LocalStorage
from tests.factories import make_file, make_project


@pytest.fixture
def file_ids(sessions: Sessions, storage: LocalStorage, project: Project) -> tuple[str, str]:
    with transaction(sessions) as session:
        return make_file(session, storage, project).id, make_file(session, storage, project).id


def find(
    sessions: Sessions, project: Project, training_file: str, validation_file: str | None = None, base: str = "tiny"
) -> JobReferences:
    with transaction(sessions) as session:
        return references.load_job_references(session, project.id, base, training_file, validation_file)


@pytest.mark.usefixtures("base_model")
class TestExistingRows:
    def test_everything_is_found_in_one_statement(
        self, engine: Engine, sessions: Sessions, project: Project, file_ids: tuple[str, str]
    ) -> None:
        sent: list[str] = []

        def note(*arguments: Any) -> None:
            sent.append(arguments[2])

        event.listen(engine, "before_cursor_execute", note)
        found = find(sessions, project, *file_ids)
        event.remove(engine, "before_cursor_execute", note)
        assert len(sent) == 1
        assert found.training_file is not None
        assert found.validation_file is not None
        assert found.base is not None
        assert (found.training_file.id, found.validation_file.id) == file_ids
        assert (found.project.id, found.base.name) == (project.id, "tiny")

    def test_both_files_may_be_the_same(self, sessions: Sessions, project: Project, file_ids: tuple[str, str]) -> None:
        found = find(sessions, project, file_ids[0], file_ids[0])
        assert found.training_file is not None
        assert found.training_file is found.validation_file

    def test_a_validation_file_that_is_not_named_is_none(
        self, sessions: Sessions, project: Project, file_ids: tuple[str, str]
    ) -> None:
        found = find(sessions, project, file_ids[0])
        assert found.training_file is not None
        assert found.validation_file is None


@pytest.mark.usefixtures("base_model")
class TestRowsThatTheProjectMayNotUse:
    def test_another_projects_file_or_model_is_none(
        self, sessions: Sessions, project: Project, file_ids: tuple[str, str]
    ) -> None:
        with transaction(sessions) as session:
            other = make_project(session, "other")
            session.execute(update(BaseModelRow).values(project_id=project.id))
        assert find(sessions, project, *file_ids).base is not None
        found = find(sessions, other, *file_ids)
        assert (found.base, found.training_file, found.validation_file) == (None, None, None)
        assert found.project.id == other.id

    def test_a_deleted_and_an_expired_file_are_none(
        self, sessions: Sessions, project: Project, file_ids: tuple[str, str]
    ) -> None:
        with transaction(sessions) as session:
            files.delete(session, session.get_one(File, file_ids[0]))
            expired = func.clock_timestamp() - text("interval '1 s'")
            session.execute(update(File).where(File.id == file_ids[1]).values(expires_at=expired))
        found = find(sessions, project, *file_ids)
        assert (found.training_file, found.validation_file) == (None, None)

    def test_a_model_that_is_not_registered_takes_no_file_away(
        self, sessions: Sessions, project: Project, file_ids: tuple[str, str]
    ) -> None:
        found = find(sessions, project, file_ids[0], base="ft:tiny:tunery::none")
        assert found.base is None
        assert found.training_file is not None
