"""`tunery projects`, `allow-urgent` and `retention`; tests/commands/test_resources.py has what is alike for all."""

from __future__ import annotations

from app.db.engine import Sessions, transaction
from app.db.tables import File, Job, Project
from tests.commands.conftest import Tunery
from tests.operations.test_retention import age_everything


def test_limits_have_the_units_of_people_and_none_removes_one(operator: Tunery, sessions: Sessions) -> None:
    done = operator(
        "projects", "create", "lab", "--max-stored-bytes", "1.5TB", "--max-gpu-hours", "10",
        "--max-running-jobs", "2", "--share-weight", "3",
    )  # fmt: skip
    assert done.exit_code == 0, done.err
    with transaction(sessions) as session:
        project = session.get_one(Project, done.out.strip())
    assert (project.name, project.share_weight, project.max_running_jobs) == ("lab", 3, 2)
    assert (project.max_stored_bytes, project.max_gpu_seconds_per_month) == (1_500_000_000_000, 36_000)
    changed = operator("projects", "set", "lab", "--name", "study", "--max-stored-bytes", "none", "--json").json
    assert (changed["id"], changed["name"], changed["limits"]["max_stored_bytes"]) == (project.id, "study", None)
    assert changed["limits"]["max_running_jobs"] == 2


def test_an_archived_project_is_listed_on_request_and_opened_again(operator: Tunery) -> None:
    operator("projects", "create", "lab")
    assert operator("projects", "archive", "lab").out == "lab is archived\n"
    assert [each["name"] for each in operator("projects", "list", "--json").json] == ["default"]
    assert len(operator("projects", "list", "--archived", "--json").json) == 2
    for _ in range(2):
        assert operator("projects", "unarchive", "lab").out == "lab is active\n"


def test_urgent_jobs_are_allowed_and_forbidden(operator: Tunery, sessions: Sessions, project: Project) -> None:
    for options, is_allowed in (((), True), (("--forbid",), False)):
        assert operator("allow-urgent", "default", *options).exit_code == 0
        with transaction(sessions) as session:
            assert session.get_one(Project, project.id).may_be_urgent is is_allowed


def test_retention_rules_are_previewed_set_shown_and_removed(
    operator: Tunery, sessions: Sessions, trained_job: Job
) -> None:
    with transaction(sessions) as session:
        age_everything(session)
    [rule] = operator("retention", "default", "--files", "90", "--dry-run", "--json").json
    assert (rule["project"], rule["kind"], rule["days"], rule["due"]["count"]) == ("default", "files", 90, 1)
    assert rule["due"]["size_bytes"] > 0
    assert operator("retention", "--json").json == []
    shown = operator("retention", "default", "--logs", "30", "--events", "60").out.splitlines()[1:]
    assert [line.split() for line in shown] == [["default", "events", "60"], ["default", "logs", "30"]]
    assert len(operator("retention", "default", "--files", "90", "--dry-run", "--json").json) == 3
    operator("retention", "default", "--logs", "none", "--events", "none")
    assert operator("retention", "--json").json == []
    with transaction(sessions) as session:
        assert session.get_one(File, trained_job.training_file_id).deleted_at is None
