from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli.client.http import Client
from app.cli.errors import NotFoundError
from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.app.cli.conftest import Tunery
from tests.factories import make_file, make_job


@pytest.fixture
def jobs(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> list[str]:
    """Three jobs, oldest first; two ids begin alike."""
    made = []
    with transaction(sessions) as session:
        file = make_file(session, storage, project)
        for digits in ("abc0", "abc1", "def0"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("app.db.ids.secrets.token_hex", lambda _, digits=digits: digits + "0" * 20)
                made.append(make_job(session, project, file).id)
    return made


class TestJobs:
    @pytest.mark.parametrize("text", ["ftjob-def", "def0", "d"])
    def test_a_unique_prefix_is_resolved(self, tunery: Tunery, jobs: list[str], text: str) -> None:
        assert tunery("jobs", "get", text, "--json").json["id"] == jobs[2]

    def test_the_newest_is_last(self, tunery: Tunery, jobs: list[str]) -> None:
        assert tunery("jobs", "get", "@last", "--json").json["id"] == jobs[2]

    def test_several_are_named(self, tunery: Tunery, jobs: list[str]) -> None:
        done = tunery("jobs", "cancel", "abc")
        assert done.exit_code == 2
        assert f"'abc' matches several jobs: {jobs[1]}, {jobs[0]}. Give a longer" in done.err

    def test_not_all_of_very_many_are(self, tunery: Tunery, jobs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.cli.client.references.MAX_CANDIDATES", 2)
        assert f"{jobs[2]}, {jobs[1]} and others." in tunery("jobs", "get", "ftjob-").err

    def test_none_is_not_found(self, tunery: Tunery, jobs: list[str]) -> None:
        done = tunery("jobs", "get", "ftjob-77")
        assert (done.exit_code, "No job id starts with 'ftjob-77'" in done.err) == (3, True)

    def test_without_jobs_the_last_is_not_found(self, tunery: Tunery) -> None:
        done = tunery("jobs", "get", "@last")
        assert (done.exit_code, "there is none yet" in done.err) == (3, True)

    def test_a_full_id_is_requested_without_a_search(
        self, tunery: Tunery, jobs: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(Client, "pages")
        assert tunery("jobs", "get", jobs[0], "--json").json["id"] == jobs[0]

    @pytest.mark.parametrize(
        "command",
        [
            ["jobs", "get"], ["jobs", "events"], ["jobs", "logs"], ["jobs", "metrics"], ["jobs", "exports"],
            ["jobs", "set", "--priority", "1"], ["jobs", "pause"], ["jobs", "resume"], ["jobs", "cancel"],
            ["jobs", "clone"], ["jobs", "watch"], ["jobs", "export"], ["adapters", "download"],
            ["adapters", "merge", "--base", "b", "--to", "t"], ["jobs", "delete-export"], ["jobs", "diff"],
        ],
        ids=" ".join,
    )  # fmt: skip
    def test_every_command_on_a_job_takes_them(self, tunery: Tunery, jobs: list[str], command: list[str]) -> None:
        """An ambiguous one, which a command that does not know of beginnings would report as not found."""
        more = [jobs[0]] if command[1] in ("delete-export", "diff") else []
        done = tunery(*command[:2], "abc", *more, *command[2:])
        assert (done.exit_code, "matches several jobs" in done.err) == (2, True), done.err

    def test_so_does_the_other_job_of_a_diff(self, tunery: Tunery, jobs: list[str]) -> None:
        assert f"left: {jobs[2]}, right: {jobs[2]}" in tunery("jobs", "diff", "@last", "def").err


class TestLastResult:
    @pytest.fixture
    def newer(self, sessions: Sessions, storage: LocalStorage, project: Project, trained_job: Job) -> str:
        """A job without a result, created after the one with a result."""
        with transaction(sessions) as session:
            return make_job(session, project, make_file(session, storage, project)).id

    @pytest.mark.parametrize(
        ("command", "gets_result"),
        [
            (["adapters", "download", "@last"], True),
            (["adapters", "download", "@last", "--checkpoint", 2], False),
            (["adapters", "merge", "@last", "--base", "b", "--to", "t"], True),
            (["adapters", "compare", "@last", "--base", "b", "--prompts", "{dataset}"], True),
            (["eval", "@last", "--file", "{dataset}"], True),
            (["compare", "@last", "--prompt", "Why?"], True),
            (["jobs", "export", "@last"], True),
            (["jobs", "deliver", "@last", "--to", "engine"], True),
            (["jobs", "get", "@last"], False),
            (["jobs", "exports", "@last"], False),
        ],
    )
    def test_is_that_of_commands_on_a_result(
        self, tunery: Tunery, trained_job: Job, newer: str, dataset: Path, monkeypatch: pytest.MonkeyPatch,
        command: list[object], gets_result: bool,
    ) -> None:  # fmt: skip
        """Which job the first request about a job names."""
        ask, asked = Client._request, list[str]()

        def recorded(client: Client, method: str, path: str, **request: Any) -> Any:
            if path.startswith("fine_tuning/jobs/"):
                asked.append(path.split("/")[2])
                raise NotFoundError("No such job.")
            return ask(client, method, path, **request)

        monkeypatch.setattr(Client, "_request", recorded)
        tunery(*(str(word).format(dataset=dataset) for word in command))
        assert asked[0] == (trained_job.id if gets_result else newer)

    def test_is_not_found_without_one(self, tunery: Tunery, jobs: list[str]) -> None:
        done = tunery("adapters", "download", "@last")
        assert (done.exit_code, "job with a result, but there is none yet" in done.err) == (3, True)


class TestFiles:
    def test_beginnings_and_the_newest_stand_for_files(self, tunery: Tunery, tmp_path: Path) -> None:
        made = []
        for number in range(3):
            path = tmp_path / f"{number}.jsonl"
            path.write_text('{"text": "a"}\n')
            made.append(tunery("files", "upload", path).out.strip())
        assert tunery("files", "get", "@last", "--json").json["id"] == made[2]
        assert tunery("files", "get", made[0][:20], "--json").json["id"] == made[0]
        assert "matches several files" in tunery("files", "download", "file-").err
        assert tunery("files", "delete", "@last", made[0][:-1]).out == f"{made[2]} deleted\n{made[0]} deleted\n"
        assert [one["id"] for one in tunery("files", "list", "--json").json] == [made[1]]
