from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.client.http import Client
from app.cli.errors import ServiceUnreachable, TooManyRequests
from app.cli.openai_import.record import ImportRecord, complete_lines
from app.db.engine import Sessions, transaction
from app.errors import BadRequest
from app.services import base_models
from tests.app.cli.conftest import Tunery
from tests.app.cli.stand_in_openai import KEY, StandInOpenAI, chat_lines, stand_in_openai
from tests.deadline import until
from tests.serving import LiveServer

ROOT = Path(__file__).parents[4]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInOpenAI]:
    """An account with one job on one file."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # the user's scripts have Tunery's address there
    with stand_in_openai() as account:
        account.add_file("file-train")
        account.add_job("ftjob-aaaa")
        yield account


@pytest.fixture
def bring(tunery: Tunery, account: StandInOpenAI, tmp_path: Path, base_model: str) -> Tunery:
    def bring(*options: object) -> Any:
        return tunery("import", "openai", "--directory", tmp_path / "saved", "--openai-url", account.url, *options)

    return bring


def facts(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What the record says of each id at OpenAI."""
    found: dict[str, dict[str, Any]] = {}
    for line in complete_lines(tmp_path / "saved" / "record.jsonl").splitlines():
        row = json.loads(line)
        found.setdefault(row.pop("id"), {}).update(row)
    return found


def jobs(tunery: Tunery) -> list[dict[str, Any]]:
    return list(tunery("jobs", "list", "--json").json)


class TestImport:
    def test_says_line_by_line_what_is_kept_replaced_and_impossible(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI
    ) -> None:
        account.jobs[0]["integrations"] = [{"type": "wandb", "wandb": {"project": "x"}}]
        done = bring("--model", "tiny")
        assert done.exit_code == 0, done.err
        lines = [" ".join(line.split()) for line in done.out.splitlines()]
        file_id = tunery("files", "list", "--json").json[0]["id"]
        for line in (
            "replaced model: gpt-4o-mini-2024-07-18 -> tiny",
            "kept n_epochs: 3",
            "kept seed: 42",
            f"kept training_file: file-train (train.jsonl) -> {file_id}",
            "replaced learning_rate_multiplier: 1.8 -> auto: it multiplies a learning rate that OpenAI does not "
            "publish",
            "impossible integrations: wandb: metrics are in the job's events and results file instead",
        ):
            assert line in lines, done.out
        assert jobs(tunery) == []

    def test_only_reads_at_openai_and_saves_what_it_read(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.add_file("file-unused", chat_lines(3))
        bring("--model", "tiny")
        assert {method for method, _ in account.requests} == {"GET"}
        saved = tmp_path / "saved"
        assert json.loads((saved / "jobs" / "ftjob-aaaa.json").read_text())["seed"] == 42
        assert "Created fine-tuning job" in (saved / "jobs" / "ftjob-aaaa.events.jsonl").read_text()
        assert (saved / "files" / "file-unused" / "unused.jsonl").read_bytes() == chat_lines(3)
        train = facts(tmp_path)["file-train"]
        assert (train["created_at"], len(train["sha256"])) == (1_740_000_000, 64)

    def test_the_file_and_the_job_show_where_the_file_comes_from(self, bring: Tunery, tunery: Tunery) -> None:
        bring("--model", "tiny", "--run")
        (file,) = tunery("files", "list", "--json").json
        origin = file["origin"]
        assert (origin["service"], origin["id"], origin["filename"]) == ("openai", "file-train", "train.jsonl")
        assert (origin["created_at"], origin["imported_at"] >= origin["created_at"]) == (1_740_000_000, True)
        (job,) = jobs(tunery)
        assert job["file_origins"] == {"training_file": origin, "validation_file": None}
        assert "openai file-train" in tunery("files", "get", file["id"]).out

    def test_json_is_a_line_for_each_job(self, bring: Tunery, tunery: Tunery, account: StandInOpenAI) -> None:
        account.add_job("ftjob-bbbb", model="gpt-4.1-2025-04-14")
        done = bring("--model-map", "gpt-4o-mini-2024-07-18=tiny", "--run", "--json")
        first, second = map(json.loads, done.out.splitlines())
        assert (first["openai_job"], first["job"]) == ("ftjob-aaaa", jobs(tunery)[0])
        assert {"outcome": "kept", "name": "seed", "text": "42"} in first["notes"]
        assert (second["job"], [each["outcome"] for each in second["notes"]].count("impossible")) == (None, 1)

    def test_plans_without_a_job(self, bring: Tunery, tunery: Tunery) -> None:
        done = bring("--model", "tiny", "--plan")
        assert done.exit_code == 0, done.err
        assert "plan        1" in done.out
        assert "tokens in 9 steps" in done.out
        assert jobs(tunery) == []

    def test_runs_every_job_with_its_origin_in_the_metadata(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI
    ) -> None:
        for job_id in ("ftjob-bbbb", "ftjob-cccc", "ftjob-dddd"):
            account.add_job(job_id)
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 0, done.err
        made = jobs(tunery)
        origins = [job["metadata"]["openai_job"] for job in reversed(made)]
        assert origins == ["ftjob-aaaa", "ftjob-bbbb", "ftjob-cccc", "ftjob-dddd"]
        job = made[-1]
        assert (job["model"], job["seed"], job["user_provided_suffix"]) == ("tiny", 42, "support")
        assert job["metadata"]["team"] == "search"
        assert len({each["training_file"] for each in made}) == 1

    def test_saves_checkpoints_and_result_files_of_every_job(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.result_files.add(account.add_file("file-results", b"step,train_loss\n1,0.5\n"))
        account.add_job("ftjob-bbbb", status="cancelled", fine_tuned_model=None)
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 0, done.err
        saved = tmp_path / "saved"
        assert (saved / "files" / "file-results" / "results.jsonl").read_bytes() == account.files["file-results"]
        for job_id in ("ftjob-aaaa", "ftjob-bbbb"):
            assert json.loads((saved / "jobs" / f"{job_id}.checkpoints.jsonl").read_text())["step_number"] == 10
        assert "ftjob-bbbb: not recreated, its status is cancelled; name it with --job to do so" in done.out
        assert len(jobs(tunery)) == 1

    def test_a_job_that_has_gone_on_is_saved_again(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.jobs[0]["status"] = "running"
        bring("--model", "tiny")
        account.jobs[0]["status"] = "succeeded"
        account.requests.clear()
        bring("--model", "tiny")
        assert json.loads((tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").read_text())["status"] == "succeeded"
        assert ("GET", "/v1/fine_tuning/jobs/ftjob-aaaa/events") in account.requests

    def test_everything_is_saved_before_tunery_is_asked(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: Any, **__: Any) -> None:
            raise ServiceUnreachable("Cannot connect to Tunery.")

        monkeypatch.setattr(Client, "get", unreachable)
        assert bring("--model", "tiny").exit_code == 1
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").exists()

    def test_again_it_repeats_nothing(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bring("--model", "tiny")
        account.requests.clear()
        planned: list[str] = []
        post = Client.post

        def count(client: Client, path: str, body: Any = None, **params: Any) -> Any:
            planned.extend([path] if path.endswith("/plan") else [])
            return post(client, path, body, **params)

        monkeypatch.setattr(Client, "post", count)
        for _ in range(2):
            assert bring("--model", "tiny", "--run").exit_code == 0
        assert len(jobs(tunery)) == 1
        assert len(tunery("files", "list", "--json").json) == 1
        assert not [path for _, path in account.requests if path.endswith(("/content", "/events", "/checkpoints"))]
        assert planned == []

    def test_two_imports_into_one_directory_are_refused(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        with contextlib.closing(ImportRecord(tmp_path / "saved")):
            done = bring("--model", "tiny", "--run")
        assert (done.exit_code, "Another import uses" in done.err) == (2, True)
        assert account.requests == []
        assert bring("--model", "tiny").exit_code == 0

    def test_a_lost_record_creates_no_job_twice(self, bring: Tunery, tunery: Tunery, tmp_path: Path) -> None:
        bring("--model", "tiny", "--run")
        (tmp_path / "saved" / "record.jsonl").unlink()
        bring("--model", "tiny", "--run")
        assert len(jobs(tunery)) == 1
        assert len(tunery("files", "list", "--json").json) == 1

    def test_a_job_with_all_its_metadata_is_found_again(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.jobs[0]["metadata"] = {f"key-{n}": "value" for n in range(16)}
        done = bring("--model", "tiny", "--run")
        assert "impossible  metadata: key-15, openai_model" in done.out
        (tmp_path / "saved" / "record.jsonl").unlink()
        bring("--model", "tiny", "--run")
        (job,) = jobs(tunery)
        assert job["metadata"].keys() == {"openai_job", *(f"key-{n}" for n in range(15))}

    def test_the_state_of_another_server_is_replaced(self, bring: Tunery, tunery: Tunery, tmp_path: Path) -> None:
        bring("--model", "tiny", "--run")
        path = tmp_path / "saved" / "record.jsonl"
        (file,), (job,) = tunery("files", "list", "--json").json, jobs(tunery)
        path.write_text(path.read_text().replace(file["id"], "file-0ther").replace(job["id"], "ftjob-0ther"))
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 0, done.err
        known = facts(tmp_path)
        assert (known["file-train"]["tunery_file"], known["ftjob-aaaa"]["job"]) == (file["id"], job["id"])
        assert len(tunery("files", "list", "--json").json) == len(jobs(tunery)) == 1

    def test_a_removed_local_file_is_downloaded_again(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        bring("--model", "tiny")
        local = tmp_path / "saved" / "files" / "file-train" / "train.jsonl"
        local.unlink()
        tunery("files", "delete", tunery("files", "list", "--json").json[0]["id"])
        assert bring("--model", "tiny").exit_code == 0
        assert local.read_bytes() == account.files["file-train"]
        assert len(tunery("files", "list", "--json").json) == 1

    @pytest.mark.parametrize("name", ["..", "/", "../../x/tr\u00e4in .jsonl", "[red]x[/red]<b>.jsonl"])
    def test_a_name_that_is_a_path_stays_in_the_directory_and_is_found_again(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path, name: str
    ) -> None:
        account.names["file-train"] = name
        done = bring("--model", "tiny")
        assert done.exit_code == 0, done.err
        (saved,) = (tmp_path / "saved" / "files" / "file-train").iterdir()
        assert saved.read_bytes() == account.files["file-train"]
        (tmp_path / "saved" / "record.jsonl").unlink()
        bring("--model", "tiny")
        assert len(tunery("files", "list", "--json").json) == 1

    def test_two_equal_files_are_two_files(self, bring: Tunery, tunery: Tunery, account: StandInOpenAI) -> None:
        account.add_file("file-copy")
        account.names["file-copy"] = "train.jsonl"
        account.add_job("ftjob-bbbb", training_file="file-copy")
        bring("--model", "tiny")
        origins = {file["origin"]["id"] for file in tunery("files", "list", "--json").json}
        assert origins == {"file-train", "file-copy"}

    def test_a_table_names_the_base_of_each_model(self, bring: Tunery, tunery: Tunery) -> None:
        assert bring("--model-map", "gpt-4o-mini-2024-07-18=tiny", "--run").exit_code == 0
        (job,) = jobs(tunery)
        assert (job["model"], job["metadata"]["openai_model"]) == ("tiny", "gpt-4o-mini-2024-07-18")

    def test_without_a_table_the_aliases_of_the_server_name_the_base(
        self, bring: Tunery, tunery: Tunery, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            base_models.set_alias(session, "gpt-4o-mini-2024-07-18", "tiny")
        done = bring("--run")
        assert done.exit_code == 0, done.err
        assert "kept        model: gpt-4o-mini-2024-07-18, an alias on this server" in done.out
        (job,) = jobs(tunery)
        assert (job["model"], job["model_alias"]) == ("tiny", "gpt-4o-mini-2024-07-18")

    @pytest.mark.parametrize("options", [["--model-map", "gpt-4o-mini-2024-07-18=tiny"], []], ids=["table", "alias"])
    def test_a_fine_tune_that_was_trained_further_has_the_base_of_its_base(
        self, bring: Tunery, account: StandInOpenAI, sessions: Sessions, options: list[str]
    ) -> None:
        account.jobs[0]["model"] = "ft:gpt-4o-mini-2024-07-18:acme:first:9xYz"
        assert "--model-map gpt-4o-mini-2024-07-18=BASE" in bring().out
        with transaction(sessions) as session:
            base_models.set_alias(session, "gpt-4o-mini-2024-07-18", "tiny")
        done = bring(*options)
        assert done.exit_code == 0, done.err
        base = "tiny" if options else "gpt-4o-mini-2024-07-18"
        assert f"model: ft:gpt-4o-mini-2024-07-18:acme:first:9xYz -> {base}; an earlier fine-tune" in done.out

    def test_preferences_and_reinforcement(self, bring: Tunery, account: StandInOpenAI) -> None:
        pairs = {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}
        answers = {
            f"{name}_output": [{"role": "assistant", "content": name}] for name in ("preferred", "non_preferred")
        }
        pair = {"input": {"messages": [{"role": "user", "content": "hi"}]}} | answers
        account.add_file("file-pairs", (json.dumps(pair).encode() + b"\n") * 10)
        method = {"type": "dpo", "dpo": pairs}
        account.add_job("ftjob-bbbb", method=method, hyperparameters=None, training_file="file-pairs")
        account.add_job("ftjob-cccc", method={"type": "reinforcement", "reinforcement": {"grader": {}}})
        done = bring("--model", "tiny")
        assert done.exit_code == 1
        assert "kept        beta: 0.2" in done.out
        assert "impossible  method: reinforcement is not offered here; supervised and dpo are" in done.out
        assert "1 jobs cannot be recreated" in done.err


class TestFaults:
    def test_a_file_that_openai_no_longer_has(self, bring: Tunery, account: StandInOpenAI) -> None:
        account.add_job("ftjob-bbbb", training_file="file-gone")
        done = bring("--model", "tiny")
        assert done.exit_code == 1
        text = "training_file: file-gone: OpenAI does not return it (No such File object: file-gone)"
        assert f"impossible  {text}" in done.out
        assert "kept        training_file: file-train" in done.out  # the other job is done

    def test_a_listed_file_without_content(self, bring: Tunery, account: StandInOpenAI) -> None:
        account.add_job("ftjob-bbbb", training_file=account.add_file("file-empty"))
        account.without_content.add("file-empty")
        done = bring("--model", "tiny")
        assert done.exit_code == 1
        text = "OpenAI does not return it (No such File object: file-empty)"
        assert f"file-empty: not saved, {text}" in done.out
        assert f"impossible  training_file: file-empty: {text}" in done.out
        assert "kept        training_file: file-train" in done.out
        assert "Saved in" in done.err

    def test_a_job_without_events(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.without_events.add("ftjob-aaaa")
        done = bring("--model", "tiny")
        assert done.exit_code == 0, done.err
        assert "ftjob-aaaa: events not saved, OpenAI does not return them (Could not find fine tune: ftjob" in done.out
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").exists()
        account.without_events.clear()
        bring("--model", "tiny")
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.events.jsonl").exists()

    def test_a_file_that_tunery_refuses(self, bring: Tunery, tunery: Tunery, account: StandInOpenAI) -> None:
        account.add_file("file-broken", b'{"messages": [NaN]}\n')
        account.jobs.insert(0, account.jobs[0] | {"id": "ftjob-0000", "training_file": "file-broken"})
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 1
        assert "impossible  training_file: file-broken: " in done.out
        assert [job["metadata"]["openai_job"] for job in jobs(tunery)] == ["ftjob-aaaa"]

    @pytest.mark.parametrize("options", [(), ("--plan",), ("--run",)])
    @pytest.mark.parametrize("name", ["training_file", "validation_file"])
    def test_images_make_a_job_impossible_before_it_is_created(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, name: str, options: tuple[str, ...]
    ) -> None:
        image = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]
        pair = [{"role": "user", "content": image}, {"role": "assistant", "content": "a cat"}]
        account.add_file("file-vision", json.dumps({"messages": pair}).encode() + b"\n" + chat_lines())
        account.add_job("ftjob-bbbb", **{name: "file-vision"})
        done = bring("--model", "tiny", *options)
        assert done.exit_code == 1
        assert f'impossible  {name}: Line 1: message 1 (user): content has a part of the type "image_url"' in done.out
        made = [job["metadata"]["openai_job"] for job in jobs(tunery)]
        assert made == (["ftjob-aaaa"] if options == ("--run",) else [])

    def test_a_file_that_cannot_be_counted_in_time_is_no_obstacle(
        self, bring: Tunery, tunery: Tunery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def too_late(*_: Any, **__: Any) -> None:
            raise BadRequest("counting its tokens takes too long", "training_file", "file_too_large_to_plan")

        monkeypatch.setattr("app.services.jobs.plan.make_plan", too_late)
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 0, done.err
        assert "plan        unknown: counting its tokens takes too long" in done.out
        assert len(jobs(tunery)) == 1

    def test_a_limit_of_tunery_is_no_final_answer(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        account.add_job("ftjob-bbbb")
        post = Client.post

        def limited(client: Client, path: str, body: Any = None, **params: Any) -> Any:
            if path == "fine_tuning/jobs" and body["metadata"]["openai_job"] == "ftjob-aaaa":
                raise TooManyRequests("You exceeded your limit of unfinished jobs.")
            return post(client, path, body, **params)

        monkeypatch.setattr(Client, "post", limited)
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 1
        assert "later       request: You exceeded" in done.out
        assert [job["metadata"]["openai_job"] for job in jobs(tunery)] == ["ftjob-bbbb"]

    def test_a_key_that_may_not_read(self, bring: Tunery, account: StandInOpenAI) -> None:
        account.may_read_jobs = False
        done = bring("--model", "tiny")
        assert done.exit_code == 4
        assert "OpenAI refused to list fine-tuning jobs: You have insufficient permissions" in done.err

    @pytest.mark.parametrize(("key", "text"), [("", "is not set"), ("tnry_x", "is a key of Tunery")])
    def test_no_key_of_openai(self, bring: Tunery, monkeypatch: pytest.MonkeyPatch, key: str, text: str) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        done = bring("--model", "tiny")
        assert (done.exit_code, f"OPENAI_API_KEY {text}" in done.err) == (2, True)

    def test_rate_limits_are_respected(self, bring: Tunery, account: StandInOpenAI) -> None:
        account.limited["/v1/fine_tuning/jobs"] = 3
        account.limited["/v1/files/file-train/content"] = 2
        done = bring("--model", "tiny")
        assert done.exit_code == 0, done.err

    def test_cut_in_the_middle_of_a_file_it_goes_on_where_it_stopped(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI
    ) -> None:
        account.add_file("file-second", chat_lines(200))
        account.cut.add("file-second")
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 1
        assert "Run the command again to continue." in done.err
        account.requests.clear()
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert ("GET", "/v1/files/file-train/content") not in account.requests
        assert len(jobs(tunery)) == 1

    def test_killed_in_the_middle_it_goes_on_where_it_stopped(
        self,
        bring: Tunery,
        tunery: Tunery,
        account: StandInOpenAI,
        tmp_path: Path,
        live_server: LiveServer,
        api_key: str,
    ) -> None:
        """Killed while it downloads: the process has no chance to write anything."""
        account.add_file("file-slow", chat_lines(200))
        account.add_job("ftjob-bbbb", training_file="file-slow")
        account.stalled = "file-slow"
        arguments = ["import", "openai", "--directory", tmp_path / "saved", "--openai-url", account.url]
        variables = os.environ | {
            "TUNERY_BASE_URL": live_server.root,
            "TUNERY_API_KEY": api_key,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "app.cli", *map(str, arguments), "--model", "tiny", "--run"]
        with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            until(account.has_stalled.is_set, "the download has begun", seconds=60)
            process.kill()
        account.stalled = None
        account.go_on.set()
        assert list(facts(tmp_path)) == ["file-train"]
        account.requests.clear()
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 0, done.err
        assert ("GET", "/v1/files/file-train/content") not in account.requests
        assert len(jobs(tunery)) == 2
        assert len(tunery("files", "list", "--json").json) == 2

    @pytest.mark.parametrize("written", [0, 9], ids=["before a step is recorded", "in the middle of its line"])
    def test_killed_at_every_step_it_creates_each_file_and_job_once(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        account.add_job("ftjob-bbbb", training_file=account.add_file("file-second", chat_lines(13)))
        add = ImportRecord.add
        for steps in range(50):
            done_steps = iter(range(steps))

            def killed(record: ImportRecord, openai_id: str, **facts: Any) -> Any:
                if next(done_steps, None) is None:  # noqa: B023
                    record._out.write('{"id": "ftjob-bbbb"'[:written])
                    raise KeyboardInterrupt
                return add(record, openai_id, **facts)

            monkeypatch.setattr(ImportRecord, "add", killed)
            if bring("--model", "tiny", "--run").exit_code == 0:
                break
        assert steps >= 3
        origins = sorted(file["origin"]["id"] for file in tunery("files", "list", "--json").json)
        assert origins == ["file-second", "file-train"]
        assert sorted(job["metadata"]["openai_job"] for job in jobs(tunery)) == ["ftjob-aaaa", "ftjob-bbbb"]

    def test_the_state_of_an_earlier_release_is_continued(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        bring("--model", "tiny", "--run")
        known = facts(tmp_path)
        state = {"files": {"file-train": known["file-train"]}, "jobs": {"ftjob-aaaa": known["ftjob-aaaa"]}}
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
        (tmp_path / "saved" / "record.jsonl").unlink()
        account.requests.clear()
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert ("GET", "/v1/files/file-train/content") not in account.requests
        assert len(jobs(tunery)) == len(tunery("files", "list", "--json").json) == 1

    def test_without_a_base_model_every_job_says_how_to_choose_one(self, bring: Tunery) -> None:
        done = bring()
        assert done.exit_code == 1
        assert "no base model was chosen; give --model BASE, or --model-map gpt-4o-mini-2024-07-18=BASE" in done.out

    def test_a_base_model_that_is_not_there(self, bring: Tunery, account: StandInOpenAI) -> None:
        account.add_job("ftjob-bbbb", model="gpt-4.1-2025-04-14")
        done = bring("--model-map", "gpt-4o-mini-2024-07-18=none", "--model", "tiny", "--plan")
        assert done.exit_code == 1
        (refusal,) = (line for line in done.out.splitlines() if line.startswith("  impossible  model: "))
        assert "does not exist" in refusal
        assert "tokens in 9 steps" in done.out  # of the other job
        assert "Saved in" in done.err

    def test_without_a_worker_the_plan_says_so(self, bring: Tunery) -> None:
        assert "plan        No training worker is running." in bring("--model", "tiny", "--plan").out


class TestRecord:
    def test_asks_the_old_model_each_question_once(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.add_file("file-valid", chat_lines(5))
        model = account.add_job("ftjob-bbbb", validation_file="file-valid")["fine_tuned_model"]
        golden = tmp_path / "golden.jsonl"
        done = bring("--record", golden, "--from", model)
        assert (done.exit_code, done.out.strip()) == (0, str(golden)), done.err
        rows = [json.loads(line) for line in golden.read_text().splitlines()]
        assert [row["recorded_answer"] for row in rows] == [f"old: say {n}" for n in range(5)]
        assert rows[0]["messages"][-1]["content"] == "it is 0"  # the expected answer is kept beside it
        asked = account.requests.count(("POST", "/v1/chat/completions"))
        assert bring("--record", golden, "--from", model).exit_code == 0
        assert account.requests.count(("POST", "/v1/chat/completions")) == asked == 5

    def test_goes_on_after_a_cut_line(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(3))
        bring("--record", golden, "--from", "ft:old", "--prompts", prompts)
        golden.write_bytes(golden.read_bytes()[:-30])
        assert bring("--record", golden, "--from", "ft:old", "--prompts", prompts).exit_code == 0
        assert len([json.loads(line) for line in golden.read_text().splitlines()]) == 3
        assert account.requests.count(("POST", "/v1/chat/completions")) == 4

    def test_a_refused_prompt_does_not_block_the_others(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(3))
        account.refused["say 1"] = 400
        done = bring("--record", golden, "--from", "ft:old", "--prompts", prompts)
        assert done.exit_code == 1
        assert "refused: line 2: Invalid prompt: it was flagged." in done.out
        assert "OpenAI refused 1 prompts" in done.err
        rows = [json.loads(line) for line in golden.read_text().splitlines()]
        assert [row["recorded_answer"] for row in rows] == ["old: say 0", "old: say 2"]

    def test_a_refusal_of_the_model_is_its_answer(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.answer = lambda _: {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        golden, model = tmp_path / "golden.jsonl", account.jobs[0]["fine_tuned_model"]
        (tmp_path / "prompts.jsonl").write_bytes(chat_lines(1))
        assert bring("--record", golden, "--from", model, "--prompts", tmp_path / "prompts.jsonl").exit_code == 0
        assert json.loads(golden.read_text())["recorded_answer"] == "I cannot help with that."

    def test_an_answer_that_was_filtered_is_not_recorded(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.answer = lambda _: {"role": "assistant", "content": "it is", "finish_reason": "content_filter"}
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(1))
        done = bring("--record", golden, "--from", "ft:old", "--prompts", prompts)
        assert (done.exit_code, golden.read_text()) == (1, "")
        assert "refused: line 1: the content filter cut the answer." in done.out

    def test_a_model_that_is_gone_ends_it_at_once(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_bytes(chat_lines(3))
        account.refused["say 0"] = 404
        assert bring("--record", tmp_path / "golden.jsonl", "--from", "ft:old", "--prompts", prompts).exit_code == 1
        assert account.requests.count(("POST", "/v1/chat/completions")) == 1

    def test_a_file_has_the_answers_of_one_model(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(2))
        bring("--record", golden, "--from", "ft:one", "--prompts", prompts)
        before = golden.read_bytes()
        done = bring("--record", golden, "--from", "ft:two", "--prompts", prompts)
        assert done.exit_code == 2
        assert 'line 1 has recorded_model "ft:one", not "ft:two". Give --record a file for each model.' in done.err
        assert golden.read_bytes() == before

    def test_calls_of_tools_and_rate_limits(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        account.answer = lambda _: {"role": "assistant", "content": None, "tool_calls": [call]}
        account.limited["/v1/chat/completions"] = 3
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(1))
        assert bring("--record", golden, "--from", "ft:old", "--prompts", prompts).exit_code == 0
        row = json.loads(golden.read_text())
        assert (row["recorded_answer"], row["recorded_tool_calls"]) == ("", [call])

    def test_a_repeated_prompt_is_asked_once(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        prompts, golden = tmp_path / "prompts.jsonl", tmp_path / "golden.jsonl"
        prompts.write_bytes(chat_lines(2) * 2)
        assert bring("--record", golden, "--from", "ft:old", "--prompts", prompts).exit_code == 0
        assert account.requests.count(("POST", "/v1/chat/completions")) == 2

    def test_without_prompts_it_says_which_file_it_needs(self, bring: Tunery, account: StandInOpenAI) -> None:
        done = bring("--record", "golden.jsonl", "--from", account.jobs[0]["fine_tuned_model"])
        assert (done.exit_code, "its job has no validation file. Give --prompts FILE." in done.err) == (2, True)
