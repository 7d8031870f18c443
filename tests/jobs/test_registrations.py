from __future__ import annotations

import posixpath

from hypothesis import given
from hypothesis import strategies as st

from app.domain.base_models.registrations import directory_problem

PATHS = st.lists(st.sampled_from(["srv", "models", "models2", "..", ".", "", "etc", "a b"]), max_size=7).map("/".join)


def test_every_directory_is_refused_if_none_is_allowed() -> None:
    problem = directory_problem("/srv/models/new", ())
    assert problem is not None
    assert "TUNERY_BASE_MODEL_DIRECTORIES" in str(problem)


@given(PATHS)
def test_an_accepted_path_is_below_an_allowed_directory_after_every_dot_is_resolved(path: str) -> None:
    if directory_problem(f"/{path}", ("/srv/models",)) is None:
        assert posixpath.commonpath([posixpath.normpath(f"/{path}"), "/srv/models"]) == "/srv/models"
        assert ".." not in path.split("/")
