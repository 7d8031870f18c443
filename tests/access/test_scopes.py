from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.access import scopes
from app.domain.error_text.json_text import as_json
from app.errors import BadRequest


class TestNeeded:
    @pytest.mark.parametrize(
        ("method", "path", "scope"),
        [
            ("GET", "/v1/files", "files:read"),
            ("HEAD", "/v1/files/{file_id}/content", "files:read"),
            ("POST", "/v1/uploads/{upload_id}/parts", "files:write"),
            ("POST", "/v1/fine_tuning/jobs", "jobs:write"),
            ("POST", "/v1/fine_tuning/jobs/plan", "jobs:read"),
            ("POST", "/v1/files/{file_id}/validate", "files:read"),
            ("GET", "/v1/fine_tuning/jobs/{job_id}/adapter/archive", "jobs:read"),
            ("DELETE", "/v1/models/{model}", "models:write"),
            ("PUT", "/v1/models/{model}", "models:write"),
            ("PATCH", "/v1/models/{model}", "models:write"),
            ("GET", "/v1/organization/projects", "admin"),
            ("POST", "/v1/organization/projects/{project_id}/archive", "admin"),
            ("GET", "/v1/webhook_event_types", "webhooks:read"),
            ("GET", "/v1/project", None),
            ("GET", "/v1/filesystem", "filesystem:read"),
            ("POST", "/v1/tomorrow/{id}", "tomorrow:write"),
        ],
    )
    def test_follows_from_method_and_path(self, method: str, path: str, scope: str | None) -> None:
        assert scopes.required_scope(method, path) == scope


class TestAllow:
    @pytest.mark.parametrize("scope", [scope for scope in scopes.SCOPES if ":" in scope and scope != "all:read"])
    def test_a_scope_opens_itself_and_nothing_else_but_its_reading(self, scope: str) -> None:
        read = scope.replace(":write", ":read")
        others = set(scopes.SCOPES) - {scope, read, "all", "all:read"}
        assert scopes.allows([scope], scope)
        assert scopes.allows([scope], read)
        assert not any(scopes.allows([scope], other) for other in others)

    def test_all_opens_everything_but_admin_also_what_no_area_knows(self) -> None:
        assert scopes.allows(["all"], "files:write")
        assert scopes.allows(["all"], "tomorrow:write")
        assert not scopes.allows(["all"], "admin")

    def test_all_read_changes_nothing(self) -> None:
        assert scopes.allows(["all:read"], "jobs:read")
        assert not scopes.allows(["all:read"], "jobs:write")

    def test_admin_alone_sees_no_data(self) -> None:
        assert scopes.allows(["admin"], "admin")
        assert not scopes.allows(["admin"], "files:read")

    @given(st.sets(st.sampled_from(scopes.SCOPES)), st.sampled_from(scopes.SCOPES), st.sampled_from(scopes.SCOPES))
    def test_one_scope_more_never_closes_what_was_open(self, has: set[str], more: str, asked: str) -> None:
        assert scopes.allows(has | {more}, asked) >= scopes.allows(has, asked)


class TestChecked:
    def test_brings_them_into_one_order_without_repetitions(self) -> None:
        assert scopes.validated_scopes(["jobs:write", "files:read", "jobs:write"]) == ["files:read", "jobs:write"]

    @pytest.mark.parametrize("wrong", [["jobs"], ["files:read", "root", "*"]])
    def test_names_every_one_that_does_not_exist(self, wrong: list[str]) -> None:
        with pytest.raises(BadRequest) as refusal:
            scopes.validated_scopes(wrong)
        assert all(as_json(scope) in str(refusal.value) for scope in wrong if scope not in scopes.SCOPES)
