from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.cli.client.http import Client
from app.cli.errors import ServiceUnreachable, TooManyRequests
from app.cli.openai_import.record import ImportRecord, complete_lines
from app.db.engine import Sessions, transaction
from app.db.tables import File
from app.errors import BadRequest
from app.services import base_models
from tests.commands.conftest import Tunery
from tests.commands.stand_in_openai import KEY, StandInOpenAI, chat_lines, stand_in_openai
from tests.sentences import Reviewed

ROOT = Path(__file__).parents[2]
GOLDEN, ASKED = "golden.jsonl", ("POST", "/v1/chat/completions")
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
OUTPUTS = {f"{name}_output": [{"role": "assistant", "content": name}] for name in ("preferred", "non_preferred")}
PAIRS = (json.dumps({"input": {"messages": [{"role": "user", "content": "hi"}]}} | OUTPUTS).encode() + b"\n") * 10


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


def plain(text: str) -> str:
    """The output of an import without what differs between two runs."""
    return re.sub(r"file-[0-9a-f]{24}", "file-HERE", text)


class TestReport:
    """What an import prints for each job, in tests/sentences.json."""

    def test_each_value_of_a_job_is_kept_replaced_or_impossible(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, sessions: Sessions, reviewed: Reviewed
    ) -> None:
        with transaction(sessions) as session:
            base_models.set_alias(session, "gpt-4.1-nano-2025-04-14", "tiny")
        account.jobs[0]["integrations"] = [{"type": "wandb", "wandb": {"project": "x"}}]
        method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}}
        account.add_file("file-pairs", PAIRS)
        account.add_job("ftjob-pref", method=method, hyperparameters=None, training_file="file-pairs")
        account.add_job("ftjob-rein", method={"type": "reinforcement", "reinforcement": {"grader": {}}})
        account.add_job("ftjob-furt", model="ft:gpt-4o-mini-2024-07-18:acme:first:9xYz")
        account.add_job("ftjob-alia", model="gpt-4.1-nano-2025-04-14")
        account.add_job("ftjob-base", model="gpt-4.1-2025-04-14")
        account.add_job("ftjob-meta", metadata={f"key-{n}": "value" for n in range(16)})
        account.add_job("ftjob-stop", status="cancelled", fine_tuned_model=None)
        done = bring("--model-map", "gpt-4o-mini-2024-07-18=tiny")
        assert (done.exit_code, jobs(tunery)) == (1, [])
        reviewed(plain(done.out))
        reviewed(done.err.splitlines()[-1])

    def test_a_fine_tune_of_a_fine_tune_starts_from_its_counterpart_here_or_says_how(
        self, bring: Tunery, account: StandInOpenAI
    ) -> None:
        account.add_job("ftjob-furt", model="ft:gpt-4o-mini-2024-07-18:acme:support:aaaa")
        hint = "--model-map ft:gpt-4o-mini-2024-07-18:acme:support:aaaa=ft:"
        assert hint in bring("--model", "tiny").out
        assert hint not in bring("--model-map", "ft:gpt-4o-mini-2024-07-18:acme:support:aaaa=ft:tiny:a:b:c").out

    def test_a_job_whose_files_are_missing_or_invalid_is_impossible_and_the_others_are_created(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        image = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]
        pair = [{"role": "user", "content": image}, {"role": "assistant", "content": "a cat"}]
        account.add_file("file-vision", json.dumps({"messages": pair}).encode() + b"\n" + chat_lines())
        account.add_file("file-broken", b'{"messages": [NaN]}\n')
        account.without_content.add(account.add_file("file-empty"))
        for number, file_id in enumerate(("file-gone", "file-empty", "file-broken", "file-vision")):
            account.add_job(f"ftjob-000{number}", training_file=file_id)
        account.add_job("ftjob-0004", validation_file="file-vision")
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 1
        made = jobs(tunery)
        assert [job["metadata"]["openai_job"] for job in made] == ["ftjob-aaaa"]
        reviewed(plain(done.out).replace(made[0]["id"], "ftjob-HERE"))

    @pytest.mark.parametrize("is_counted", [True, False])
    def test_a_plan_has_tokens_and_devices_and_creates_no_job(
        self, bring: Tunery, tunery: Tunery, monkeypatch: pytest.MonkeyPatch, reviewed: Reviewed, is_counted: bool
    ) -> None:
        def too_late(*_: Any, **__: Any) -> None:
            raise BadRequest("counting its tokens takes too long", "training_file", "file_too_large_to_plan")

        if not is_counted:
            monkeypatch.setattr("app.services.jobs.plan.make_plan", too_late)
        done = bring("--model", "tiny", "--plan")
        assert (done.exit_code, jobs(tunery)) == (0, [])
        reviewed("".join(line for line in done.out.splitlines(True) if line.startswith("  plan")))
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert len(jobs(tunery)) == 1

    def test_an_unusable_key_or_option_is_refused(
        self, bring: Tunery, account: StandInOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        model = account.jobs[0]["fine_tuned_model"]
        account.may_read_jobs = False
        for key, options, exit_code in (
            (KEY, ["--model", "tiny"], 4),
            ("", [], 2),
            ("tnry_x", [], 2),
            (KEY, ["--plan", "--run"], 2),
            (KEY, ["--record", "x"], 2),
            (KEY, ["--model-map", "tiny"], 2),
            (KEY, ["--model-map", "gpt-4o-mini-2024-07-18="], 2),
        ):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            done = bring(*options)
            assert done.exit_code == exit_code
            reviewed(done.err)
        account.may_read_jobs = True
        done = bring("--record", "golden.jsonl", "--from", model)
        assert done.exit_code == 2
        reviewed(done.err)


class TestImport:
    def test_an_import_only_reads_at_openai_and_saves_everything(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.add_file("file-unused", chat_lines(3))
        account.result_files.add(account.add_file("file-results", b"step,train_loss\n1,0.5\n"))
        account.add_job("ftjob-bbbb", status="cancelled", fine_tuned_model=None)
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert len(jobs(tunery)) == 1
        assert {method for method, _ in account.requests} == {"GET"}
        saved = tmp_path / "saved"
        for name in ("unused", "results"):
            assert (saved / "files" / f"file-{name}" / f"{name}.jsonl").read_bytes() == account.files[f"file-{name}"]
        for job_id in ("ftjob-aaaa", "ftjob-bbbb"):
            assert json.loads((saved / "jobs" / f"{job_id}.json").read_text())["seed"] == 42
            assert job_id in (saved / "jobs" / f"{job_id}.events.jsonl").read_text()
            assert json.loads((saved / "jobs" / f"{job_id}.checkpoints.jsonl").read_text())["step_number"] == 10
        train = facts(tmp_path)["file-train"]
        assert (train["created_at"], len(train["sha256"])) == (1_740_000_000, 64)

    def test_every_job_is_created_with_its_origin(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, sessions: Sessions
    ) -> None:
        with transaction(sessions) as session:
            base_models.set_alias(session, "gpt-4o-mini-2024-07-18", "tiny")
        account.add_job("ftjob-bbbb")
        account.add_job("ftjob-cccc")
        assert bring("--run").exit_code == 0
        made = jobs(tunery)
        assert [job["metadata"]["openai_job"] for job in made] == ["ftjob-cccc", "ftjob-bbbb", "ftjob-aaaa"]
        job, (file,) = made[-1], tunery("files", "list", "--json").json
        assert (job["model"], job["model_alias"]) == ("tiny", "gpt-4o-mini-2024-07-18")
        assert (job["seed"], job["user_provided_suffix"], job["metadata"]["team"]) == (42, "support", "search")
        origin = file["origin"]
        assert (origin["service"], origin["id"], origin["filename"]) == ("openai", "file-train", "train.jsonl")
        assert (origin["created_at"], origin["imported_at"] >= origin["created_at"]) == (1_740_000_000, True)
        assert job["file_origins"] == {"training_file": origin, "validation_file": None}
        assert "openai file-train" in tunery("files", "get", file["id"]).out

    def test_json_is_a_line_for_each_job(self, bring: Tunery, tunery: Tunery, account: StandInOpenAI) -> None:
        account.add_job("ftjob-bbbb", model="gpt-4.1-2025-04-14")
        done = bring("--model-map", "gpt-4o-mini-2024-07-18=tiny", "--run", "--json")
        first, second = map(json.loads, done.out.splitlines())
        assert (first["openai_job"], first["job"]) == ("ftjob-aaaa", jobs(tunery)[0])
        assert {"outcome": "kept", "name": "seed", "text": "42"} in first["notes"]
        assert (second["job"], [each["outcome"] for each in second["notes"]].count("impossible")) == (None, 1)

    def test_everything_is_saved_before_tunery_is_asked(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: Any, **__: Any) -> None:
            raise ServiceUnreachable("Cannot connect to Tunery.")

        monkeypatch.setattr(Client, "get", unreachable)
        assert bring("--model", "tiny").exit_code == 1
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").exists()

    def test_a_second_import_repeats_nothing(
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

    def test_a_second_import_into_a_directory_is_refused(
        self, bring: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        with contextlib.closing(ImportRecord(tmp_path / "saved")):
            done = bring("--model", "tiny", "--run")
        assert done.exit_code == 2
        assert account.requests == []
        assert bring("--model", "tiny").exit_code == 0

    def test_a_lost_record_creates_no_file_or_job_twice(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.jobs[0]["metadata"] = {f"key-{n}": "value" for n in range(16)}
        bring("--model", "tiny", "--run")
        (tmp_path / "saved" / "record.jsonl").unlink()
        bring("--model", "tiny", "--run")
        (job,) = jobs(tunery)
        assert job["metadata"].keys() == {"openai_job", *(f"key-{n}" for n in range(15))}
        assert len(tunery("files", "list", "--json").json) == 1

    def test_a_changed_job_and_a_removed_file_are_saved_again(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.jobs[0]["status"] = "running"
        bring("--model", "tiny", "--job", "ftjob-aaaa")
        local = tmp_path / "saved" / "files" / "file-train" / "train.jsonl"
        local.unlink()
        tunery("files", "delete", tunery("files", "list", "--json").json[0]["id"])
        account.jobs[0]["status"] = "succeeded"
        account.requests.clear()
        assert bring("--model", "tiny").exit_code == 0
        assert json.loads((tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").read_text())["status"] == "succeeded"
        assert ("GET", "/v1/fine_tuning/jobs/ftjob-aaaa/events") in account.requests
        assert local.read_bytes() == account.files["file-train"]
        assert len(tunery("files", "list", "--json").json) == 1

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

    @pytest.mark.parametrize("name", ["..", "../../x/tr\u00e4in [red]x[/red]<b>.jsonl"])
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


class TestFaults:
    def test_a_job_without_events(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.without_events.add("ftjob-aaaa")
        done = bring("--model", "tiny")
        assert done.exit_code == 0, done.err
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.json").exists()
        account.without_events.clear()
        bring("--model", "tiny")
        assert (tmp_path / "saved" / "jobs" / "ftjob-aaaa.events.jsonl").exists()

    def test_a_job_over_a_limit_is_left_for_later(
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
        assert "later " in done.out
        assert [job["metadata"]["openai_job"] for job in jobs(tunery)] == ["ftjob-bbbb"]

    def test_an_import_with_limits_and_a_cut_file_is_continued(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI
    ) -> None:
        account.add_file("file-second", chat_lines(200))
        account.cut.add("file-second")
        account.limited["/v1/fine_tuning/jobs"] = 3
        account.limited["/v1/files/file-train/content"] = 2
        done = bring("--model", "tiny", "--run")
        assert done.exit_code == 1
        account.requests.clear()
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert ("GET", "/v1/files/file-train/content") not in account.requests
        assert len(jobs(tunery)) == 1

    @pytest.mark.parametrize("written", [0, 9], ids=["before a step is recorded", "in the middle of its line"])
    def test_an_import_that_is_killed_at_every_step_creates_each_once(
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

    @pytest.mark.parametrize("has_origin", [True, False])
    def test_the_state_of_an_earlier_release_is_continued(
        self, bring: Tunery, tunery: Tunery, account: StandInOpenAI, sessions: Sessions, tmp_path: Path,
        has_origin: bool,
    ) -> None:  # fmt: skip
        bring("--model", "tiny", "--run")
        known = facts(tmp_path)
        files = {"file-train": known["file-train"] | {"has_origin": has_origin}}
        state = {"files": files, "jobs": {"ftjob-aaaa": known["ftjob-aaaa"]}}
        if not has_origin:  # it was killed between the two
            with transaction(sessions) as session:
                session.execute(update(File).values(origin=None))
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
        (tmp_path / "saved" / "record.jsonl").unlink()
        account.requests.clear()
        assert bring("--model", "tiny", "--run").exit_code == 0
        assert ("GET", "/v1/files/file-train/content") not in account.requests
        (file,) = tunery("files", "list", "--json").json
        assert (file["origin"]["id"], len(jobs(tunery))) == ("file-train", 1)
        assert facts(tmp_path)["file-train"]["has_origin"]

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # the open files of the killed import
    def test_a_state_of_an_earlier_release_that_was_read_in_part_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[dict[str, Any]] = []

        def killed(row: dict[str, Any], **_: Any) -> str:
            written.append(row)
            if len(written) == 2:
                raise KeyboardInterrupt
            return f'{{"id": "{row["id"]}"}}'

        (tmp_path / "state.json").write_text('{"files": {"file-a": {}, "file-b": {}}, "jobs": {}}')
        monkeypatch.setattr(json, "dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            ImportRecord(tmp_path)
        with contextlib.closing(ImportRecord(tmp_path)) as record:
            assert record.facts.keys() == {"file-a", "file-b"}


class TestRecord:
    @pytest.fixture
    def record(self, bring: Tunery, tmp_path: Path) -> Tunery:
        """Record the answers of a model to prompts."""

        def record(prompts: bytes, model: str = "ft:old") -> Any:
            (tmp_path / "prompts.jsonl").write_bytes(prompts)
            return bring("--record", tmp_path / GOLDEN, "--from", model, "--prompts", tmp_path / "prompts.jsonl")

        return record

    def test_the_model_is_asked_each_question_once(self, bring: Tunery, account: StandInOpenAI, tmp_path: Path) -> None:
        account.add_file("file-valid", chat_lines(5))
        model = account.add_job("ftjob-bbbb", validation_file="file-valid")["fine_tuned_model"]
        done = bring("--record", tmp_path / GOLDEN, "--from", model)
        assert (done.exit_code, done.out.strip()) == (0, str(tmp_path / GOLDEN)), done.err
        rows = golden_rows(tmp_path)
        assert [row["recorded_answer"] for row in rows] == [f"old: say {n}" for n in range(5)]
        assert rows[0]["messages"][-1]["content"] == "it is 0"  # the expected answer is kept beside it
        assert bring("--record", tmp_path / GOLDEN, "--from", model).exit_code == 0
        assert account.requests.count(ASKED) == 5

    def test_a_recording_continues_after_a_cut_line(
        self, record: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        record(chat_lines(3))
        (tmp_path / GOLDEN).write_bytes((tmp_path / GOLDEN).read_bytes()[:-30])
        assert record(chat_lines(3)).exit_code == 0
        assert (len(golden_rows(tmp_path)), account.requests.count(ASKED)) == (3, 4)

    def test_a_refused_or_filtered_prompt_does_not_block_the_others(
        self, record: Tunery, account: StandInOpenAI, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        account.refused["say 1"] = 400
        cut = {"role": "assistant", "content": "it is", "finish_reason": "content_filter"}
        account.answer = lambda body: dict(cut) if body["messages"][-1]["content"] == "say 3" else "old: answer"
        done = record(chat_lines(4) + chat_lines(1))
        assert done.exit_code == 1
        reviewed((done.out + done.err.splitlines()[-1]).replace(str(tmp_path), "HERE"))
        assert [row["messages"][0]["content"] for row in golden_rows(tmp_path)] == ["say 0", "say 2"]
        assert account.requests.count(ASKED) == 4  # the repeated prompt is asked once

    @pytest.mark.parametrize(
        ("answer", "recorded"),
        [
            ({"refusal": "I cannot help."}, {"recorded_answer": "I cannot help."}),
            ({"tool_calls": [CALL]}, {"recorded_answer": "", "recorded_tool_calls": [CALL]}),
        ],
        ids=["refusal", "tools"],
    )
    def test_an_answer_without_a_text_is_recorded(
        self, record: Tunery, account: StandInOpenAI, tmp_path: Path, answer: dict[str, Any], recorded: dict[str, Any]
    ) -> None:
        account.answer = lambda _: {"role": "assistant", "content": None} | answer
        account.limited["/v1/chat/completions"] = 3
        assert record(chat_lines(1)).exit_code == 0
        assert recorded.items() <= golden_rows(tmp_path)[0].items()

    def test_a_missing_or_another_model_ends_a_recording(
        self, record: Tunery, account: StandInOpenAI, tmp_path: Path
    ) -> None:
        account.refused["say 0"] = 404
        assert record(chat_lines(3)).exit_code == 1
        assert account.requests.count(ASKED) == 1
        account.refused.clear()
        record(chat_lines(2), "ft:one")
        before = golden_rows(tmp_path)
        assert record(chat_lines(2), "ft:two").exit_code == 2
        assert golden_rows(tmp_path) == before


def golden_rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / GOLDEN).read_text().splitlines()]
