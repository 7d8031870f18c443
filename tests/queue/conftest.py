"""A job in the states in which the queue has it."""

from __future__ import annotations

import pytest

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.factories import make_file, make_job, start_job, validate_job


@pytest.fixture
def job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    """A job in `validating_files`."""
    with transaction(sessions) as session:
        return make_job(session, project, make_file(session, storage, project))


@pytest.fixture
def running(sessions: Sessions, job: Job) -> Job:
    """The job in `running`."""
    with transaction(sessions) as session:
        validate_job(session)
        return start_job(session)
