"""`tunery retention`: rules are set per project, and previewed before they delete anything."""

from __future__ import annotations

from app.db.engine import Sessions, transaction
from app.db.tables import File, Job, Project
from tests.app.cli.conftest import Tunery
from tests.app.db.operations.test_retention import age_everything


def test_a_dry_run_shows_the_effect_of_rules_and_stores_and_deletes_nothing(
    tunery: Tunery, sessions: Sessions, project: Project, trained_job: Job
) -> None:
    with transaction(sessions) as session:
        age_everything(session)
    (rule,) = tunery("retention", "default", "--files", "90", "--dry-run", "--json").json
    assert (rule["project"], rule["kind"], rule["days"], rule["count"]) == ("default", "files", 90, 1)
    assert rule["size_bytes"] > 0
    assert tunery("retention", "--json").json == []
    with transaction(sessions) as session:
        assert session.get_one(File, trained_job.training_file_id).deleted_at is None


def test_rules_are_set_shown_and_removed(tunery: Tunery, project: Project) -> None:
    tunery("retention", "default", "--logs", "30", "--events", "60")
    shown = tunery("retention", "default")
    assert [line.split() for line in shown.out.splitlines()[1:]] == [
        ["default", "events", "60"],
        ["default", "logs", "30"],
    ]
    tunery("retention", "default", "--logs", "none", "--events", "none")
    assert "nothing is deleted for its age" in tunery("retention").err


def test_wrong_values_and_a_missing_project_are_refused(tunery: Tunery, project: Project) -> None:
    assert "Give 1 to 36500, or none" in tunery("retention", "default", "--files", "0").err
    refused = tunery("retention", "--files", "90")
    assert refused.exit_code == 2
    assert "Name the project" in refused.err
