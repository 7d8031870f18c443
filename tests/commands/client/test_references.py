"""How ids are abbreviated on the command line, and which job `@last` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli.client.http import Client
from app.cli.errors import NotFoundError
from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.storage import LocalStorage
from tests.commands.conftest import Tunery
from tests.factories import make_file, make_job
from tests.sentences import Reviewed

ON_A_JOB = (
    "jobs get", "jobs events", "jobs logs", "jobs metrics", "jobs exports", "jobs set --priority 1", "jobs pause",
    "jobs resume", "jobs cancel", "jobs clone", "jobs watch", "jobs export", "adapters download",
    "adapters merge --base b --to t", "jobs delete-export", "jobs diff",
)  # fmt: skip


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


def test_a_unique_prefix_and_the_newest_stand_for_a_job(
    tunery: Tunery, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("ftjob-def", "def0", "d", "@last"):
        assert tunery("jobs", "get", text, "--json").json["id"] == jobs[2]
    assert f"left: {jobs[2]}, right: {jobs[2]}" in tunery("jobs", "diff", "@last", "def").err
    monkeypatch.delattr(Client, "pages")
    assert tunery("jobs", "get", jobs[0], "--json").json["id"] == jobs[0]  # a full id needs no search


def test_a_prefix_of_several_jobs_or_of_none_is_refused(
    tunery: Tunery, jobs: list[str], reviewed: Reviewed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.client.references.MAX_CANDIDATES", 2)
    for text, exit_code in (("abc", 2), ("ftjob-", 2), ("ftjob-77", 3)):
        done = tunery("jobs", "cancel", text)
        assert done.exit_code == exit_code
        reviewed(done.err)


def test_a_name_stands_for_a_job_and_for_a_file_unless_several_have_it(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        files = [make_file(session, storage, project, filename=name) for name in ("a.jsonl", "b.jsonl", "b.jsonl")]
        named, *twice = (
            make_job(session, project, file, suffix=name)
            for file, name in zip(files, ("bank tickets", "same", "same"), strict=True)
        )
    assert tunery("jobs", "get", "bank tickets", "--json").json["id"] == named.id
    assert [row.split("  ")[1] for row in tunery("jobs", "list").out.splitlines()[1:]] == ["same", "same", named.suffix]
    done = tunery("jobs", "get", "same")
    assert (done.exit_code, all(f"{job.id} (same)" in done.err for job in twice)) == (2, True), done.err
    create = ("jobs", "create", "--model", "tiny", "--training-file")
    assert tunery(*create, "a.jsonl", "--json").json["training_file"] == files[0].id
    done = tunery(*create, "b.jsonl")
    assert (done.exit_code, all(file.id in done.err for file in files[1:])) == (2, True), done.err
    assert tunery("files", "rm", "a.json").exit_code == 3


def test_a_checkpoint_is_named_by_its_step_or_id(tunery: Tunery, trained_job: Job, tmp_path: Path) -> None:
    rows = tunery("jobs", "checkpoints", trained_job.id, "--json").json
    listed = tunery("jobs", "checkpoints", trained_job.id).out.splitlines()[1:]
    assert [line.split()[:2] for line in listed] == [[row["id"], str(row["step_number"])] for row in rows]
    for number, text in enumerate((rows[-1]["step_number"], rows[-1]["id"], rows[-1]["id"][:-1])):
        done = tunery("adapters", "download", trained_job.id, "--checkpoint", text, "-o", tmp_path / str(number))
        assert done.exit_code == 0, done.err
        export = tunery("jobs", "export", trained_job.id, "--checkpoint", text, "--detach", "--json").json
        assert export["step_number"] == rows[-1]["step_number"]
    for command in ("adapters download -o x", "jobs export --detach", "compare --prompt a"):
        done = tunery(*command.split(), trained_job.id, "--checkpoint", "99")
        assert (done.exit_code, rows[0]["id"] in done.err) == (3, True), done.err


def test_ids_and_names_are_completed_and_nothing_without_a_service(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str
) -> None:
    with transaction(sessions) as session:
        file = make_file(session, storage, project, filename="a.jsonl")
        job = make_job(session, project, file, suffix="bank")
        make_job(session, project, file, suffix="two words")

    def completed(*words: str, **more: str) -> list[str]:
        environment = {"_TUNERY_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))} | more
        return tunery(env=environment | {"COMP_WORDS": " ".join(["tunery", *words])}, prog_name="tunery").out.split()

    assert completed("jobs", "watch", job.id[:-3]) == [job.id]
    assert completed("adapters", "download", "b") == ["bank"]
    assert completed("jobs", "get", "two") == []
    assert completed("files", "get", "a") == ["a.jsonl"]
    assert completed("jobs", "create", "--training-file", "file-") == [file.id]
    assert completed("jobs", "create", "--model", "ti") == ["tiny"]
    assert completed("jobs", "get", "f", TUNERY_BASE_URL="http://127.0.0.1:1") == []


def test_the_newest_job_of_none_is_not_found(tunery: Tunery, reviewed: Reviewed) -> None:
    for command in (("jobs", "get"), ("adapters", "download")):
        done = tunery(*command, "@last")
        assert done.exit_code == 3
        reviewed(done.err)


def test_every_command_on_a_job_takes_a_prefix(tunery: Tunery, jobs: list[str], subtests: pytest.Subtests) -> None:
    """An ambiguous one, which a command that knows no prefixes would report as not found."""
    for command in ON_A_JOB:
        with subtests.test(command):
            group, name, *options = command.split()
            more = [jobs[0]] if name in ("delete-export", "diff") else []
            done = tunery(group, name, "abc", *more, *options)
            assert (done.exit_code, "matches several jobs" in done.err) == (2, True), done.err


@pytest.mark.parametrize("gets_result", [True, False])
def test_the_newest_job_of_commands_on_a_result_has_one(
    tunery: Tunery, sessions: Sessions, storage: LocalStorage, project: Project, trained_job: Job, dataset: Path,
    monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests, gets_result: bool,
) -> None:  # fmt: skip
    """Which job the first request about a job names, if the newest one has no result."""
    with transaction(sessions) as session:
        newer = make_job(session, project, make_file(session, storage, project)).id
    ask, asked = Client._open, list[str]()

    def recorded(client: Client, method: str, path: str, **request: Any) -> Any:
        if path.startswith("fine_tuning/jobs/"):
            asked.append(path.split("/")[2])
            raise NotFoundError("No such job.")
        return ask(client, method, path, **request)

    monkeypatch.setattr(Client, "_open", recorded)
    on_a_result = [
        "adapters download @last", "adapters merge @last --base b --to t", f"eval @last --file {dataset}",
        f"adapters compare @last --base b --prompts {dataset}", "compare @last --prompt Why?", "jobs export @last",
        "jobs deliver @last --to engine",
    ]  # fmt: skip
    others = ["adapters download @last --checkpoint 2", "jobs get @last", "jobs exports @last"]
    for command in on_a_result if gets_result else others:
        with subtests.test(command):
            asked.clear()
            tunery(*command.split())
            assert asked[0] == (trained_job.id if gets_result else newer)


def test_a_prefix_and_the_newest_stand_for_a_file(tunery: Tunery, tmp_path: Path) -> None:
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
