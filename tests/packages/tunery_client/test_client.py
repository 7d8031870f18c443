"""`import tunery` with the official client, against the real API behind a socket."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai
import pytest
import tunery
from cryptography.fernet import Fernet
from sqlalchemy import update

from app.db.engine import Sessions, transaction
from app.db.tables import File, Job, Project
from app.settings import Settings
from app.storage import LocalStorage
from app.system import artifact_directory
from tests.answering_engine import BASE, TO_ENGINES, WORDS, AnsweringEngine, answering, deliver
from tests.commands.trained import make_trained_job
from tests.factories import append_step_event, chat_lines, finish_job, make_base_model, make_succeeded_job
from tests.serving import LiveServer
from tests.tiny import make_tiny_adapter, make_tiny_base, make_tiny_labelled

KEY = Fernet.generate_key().decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=TO_ENGINES | {"secret_keys": type(settings.secret_keys)(KEY)})


@pytest.fixture
def client(live_server: LiveServer, api_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("NO_PROXY", "*")
    with openai.OpenAI(base_url=live_server.url, api_key=api_key) as client:
        yield client


@pytest.fixture
def succeeded(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str) -> Job:
    with transaction(sessions) as session:
        return make_succeeded_job(session, storage, project, body={"chat_template_kwargs": {"enable_thinking": False}})


@pytest.fixture
def training_file(client: openai.OpenAI) -> str:
    return client.files.create(file=("train.jsonl", chat_lines()), purpose="fine-tune").id


@pytest.fixture
def finish_at_pause(
    sessions: Sessions, storage: LocalStorage, project: Project, running: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running job is at step 1 of 4 when the wait begins, and has succeeded after its first pause."""

    def finish(_: float) -> None:
        with transaction(sessions) as session:
            finish_job(session, storage, project, session.get_one(Job, running.id))

    with transaction(sessions) as session:
        append_step_event(session, session.get_one(Job, running.id), 1, 4)
    monkeypatch.setattr(tunery, "time", SimpleNamespace(sleep=finish))


class TestBodies:
    def test_a_job_has_the_fields_of_all_parts(
        self, client: openai.OpenAI, base_model: str, training_file: str
    ) -> None:
        graders: Any = [{"type": "label_accuracy", "name": "label"}]
        job = client.fine_tuning.jobs.create(
            model=base_model,
            training_file=training_file,
            extra_body=tunery.lora(r=8, use_rslora=True)
            | tunery.quantization(bits=8)
            | tunery.evaluation(file=training_file, graders=graders, max_rows=7),
        )
        extra = job.model_extra or {}
        assert (extra["lora"]["r"], extra["lora"]["use_rslora"], extra["quantization"]["bits"]) == (8, True, 8)
        assert extra["request"]["evaluation"] == {"file": training_file, "graders": graders, "max_rows": 7}

    def test_a_plan_takes_the_arguments_of_create(self, client: openai.OpenAI, base_model: str, tmp_path: Path) -> None:
        rows = make_tiny_labelled(tmp_path / "kto.jsonl").read_bytes()
        file = client.files.create(file=("kto.jsonl", rows), purpose="fine-tune")
        arguments: dict[str, Any] = {"model": base_model, "training_file": file.id, "seed": 7}
        arguments["extra_body"] = tunery.kto(beta=0.3, n_epochs=2) | tunery.lora(r=4)
        plan = tunery.plan(client=client, **arguments)
        assert (plan["method"], plan["seed"], plan["lora"]["r"]) == ("kto", 7, 4)
        assert (plan["hyperparameters"]["beta"], plan["hyperparameters"]["n_epochs"]) == (0.3, 2)
        assert client.fine_tuning.jobs.create(**arguments).seed == 7


class TestWait:
    def test_a_log_has_a_line_for_each_status(
        self, client: openai.OpenAI, running: Job, finish_at_pause: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = tunery.wait(running.id, client=client)
        assert (job.id, job.status) == (running.id, "succeeded")
        first, last = capsys.readouterr().err.splitlines()
        assert first.startswith(f"{running.id} running [{'#' * 6}{'-' * 18}] 1/4 steps")
        assert " 3 s " in first
        assert last.startswith(f"{running.id} succeeded [{'#' * 24}] 3/3 steps")

    def test_a_terminal_has_one_line_that_changes(
        self, client: openai.OpenAI, running: Job, finish_at_pause: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "60")
        tunery.wait(running.id, client=client)
        nothing, *lines = terminal.getvalue().removesuffix("\n").split("\r")
        assert (nothing, [len(line) for line in lines]) == ("", [59, 59])
        assert "\n" not in "".join(lines)

    def test_a_notebook_has_one_output_that_changes(
        self, client: openai.OpenAI, running: Job, finish_at_pause: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[str] = []

        def show(data: dict[str, str], **_: Any) -> Any:
            shown.append(data["text/plain"])
            return SimpleNamespace(update=show)

        module, display = ModuleType("IPython"), ModuleType("IPython.display")
        vars(module).update(get_ipython=lambda: SimpleNamespace(kernel=None))
        vars(display).update(display=show)
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        tunery.wait(running.id, client=client)
        assert [line.split()[1] for line in shown] == ["running", "succeeded"]

    def test_nothing_is_shown_on_demand(
        self, client: openai.OpenAI, succeeded: Job, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = tunery.wait(client.fine_tuning.jobs.retrieve(succeeded.id), client=client, show=False)
        assert (job.fine_tuned_model, capsys.readouterr().err) == (succeeded.fine_tuned_model, "")


class TestMetrics:
    def test_rows_without_pandas(self, client: openai.OpenAI, succeeded: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        rows = tunery.metrics(succeeded.id, client=client)
        assert [(row["step"], row["train_loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]

    def test_a_data_frame_with_pandas(
        self, client: openai.OpenAI, succeeded: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pandas = ModuleType("pandas")
        vars(pandas).update(DataFrame=lambda rows: ("frame", len(rows)))
        monkeypatch.setitem(sys.modules, "pandas", pandas)
        assert tunery.metrics(succeeded.id, client=client) == ("frame", 3)

    def test_the_plot_has_the_losses_that_the_job_has(
        self, client: openai.OpenAI, succeeded: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: dict[str, Any] = {}
        axes = SimpleNamespace(
            plot=lambda steps, losses, _, label: drawn.update({label: (steps, losses)}),
            set=lambda **labels: drawn.update(labels),
            legend=lambda: None,
        )
        pyplot = ModuleType("matplotlib.pyplot")
        vars(pyplot).update(subplots=lambda: (None, axes))
        monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
        assert tunery.plot(succeeded.id, client=client) is axes
        assert drawn["train_loss"] == ((1, 2, 3), (1.0, 0.5, 1 / 3))
        assert (set(drawn), drawn["title"]) == ({"train_loss", "title", "xlabel", "ylabel"}, succeeded.id)


class TestAdapter:
    def test_the_files_are_those_of_the_service(self, client: openai.OpenAI, succeeded: Job, tmp_path: Path) -> None:
        directory = tunery.download(succeeded.id, tmp_path / "new" / "adapter", client=client)
        listed = client.get(f"/fine_tuning/jobs/{succeeded.id}/adapter", cast_to=object)
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
        assert digests == {file["filename"]: file["sha256"] for file in listed["files"]}  # type: ignore[index]

    def test_a_file_with_another_digest_is_refused(
        self, client: openai.OpenAI, succeeded: Job, sessions: Sessions, tmp_path: Path
    ) -> None:
        with transaction(sessions) as session:
            name = artifact_directory.ADAPTER_WEIGHTS
            session.execute(update(File).where(File.filename == name).values(sha256="0" * 64))
        with pytest.raises(ValueError, match=r"^adapter_model\.safetensors "):
            tunery.download(succeeded.id, tmp_path, client=client)
        assert [path.name for path in tmp_path.glob("adapter_model*")] == []

    def test_a_job_without_a_result_is_an_error_of_the_api(
        self, client: openai.OpenAI, running: Job, tmp_path: Path
    ) -> None:
        with pytest.raises(openai.NotFoundError):
            tunery.download(running.id, tmp_path, client=client)
        with pytest.raises(ValueError, match=running.id):
            tunery.compare(running.id, ["Where?"], client=client)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at PEFT's use of it
    def test_peft_loads_it_on_its_base(
        self, client: openai.OpenAI, sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path
    ) -> None:
        base = make_tiny_base(tmp_path / "base")

        def write(directory: Path, step: int) -> Path:
            make_tiny_adapter(directory)
            artifact_directory.write_manifest(directory, {"step": step})
            return directory

        with transaction(sessions) as session:
            make_base_model(session, tmp_path / "registered", "tiny")
            job = make_trained_job(session, storage, project, tmp_path / "made", write)
        model = tunery.load(job.id, base, client=client)
        assert model.peft_config["default"].r == 4
        assert {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


class TestCompare:
    @pytest.fixture
    def engine_server(self) -> Iterator[AnsweringEngine]:
        with answering() as server:
            yield server

    def test_both_models_answer_each_prompt(
        self, client: openai.OpenAI, succeeded: Job, sessions: Sessions, engine_server: AnsweringEngine,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "pandas", None)
        with transaction(sessions) as session:
            deliver(session, succeeded, engine_server.url, encryption_keys=[KEY])
        messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
        rows = tunery.compare(succeeded.id, ["Where?", messages], client=client, max_tokens=9)
        text = "".join(WORDS)
        assert rows == [{"prompt": prompt, "base": text, "adapter": text} for prompt in ("Where?", messages)]
        asked = [request.body for request in engine_server.asked]
        assert [body["model"] == BASE for body in asked] == [True, True, False, False]
        assert [body["messages"] for body in asked[:2]] == [[{"role": "user", "content": "Where?"}], messages]
        common = {"temperature": 0, "max_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}}
        assert all(common.items() <= body.items() for body in asked)
