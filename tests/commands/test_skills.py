"""skills/: every command of every skill runs, in the order of its files, and every link has a target."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project
from app.settings import Settings
from app.storage import LocalStorage
from tests.answering_engine import TO_ENGINES, answering, deliver
from tests.commands.conftest import Tunery
from tests.commands.running_slot import running_slot
from tests.commands.stand_in_openai import KEY, chat_lines, stand_in_openai
from tests.commands.test_coming_from_openai import ANSWERS
from tests.commands.trained import make_trained_job
from tests.factories import make_base_model
from tests.test_docs import LINK
from tests.tiny import make_tiny_pairs
from tests.worker.evaluations.conftest import fake
from worker.evaluations.evaluator import Evaluator
from worker.node.slot import try_lock

SKILLS = Path(__file__).parents[2] / "skills"
SHELL = re.compile(r"```sh\n(.*?)```", re.S)
SECRET_KEY = Fernet.generate_key().decode()
BASE = "Qwen3-4B"


def pages(skill: str) -> list[Path]:
    return [SKILLS / skill / "SKILL.md", *sorted((SKILLS / skill).glob("references/*.md"))]


def commands(skill: str) -> list[str]:
    blocks = (block for page in pages(skill) for block in SHELL.findall(page.read_text(encoding="utf-8")))
    return [line for block in blocks for line in block.splitlines() if not line.startswith("export ")]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secret_keys = type(settings.secret_keys)(SECRET_KEY)
    return settings.model_copy(update=TO_ENGINES | {"secret_keys": secret_keys, "delivery_directories": ("/srv",)})


@pytest.fixture
def job(sessions: Sessions, storage: LocalStorage, project: Project, tmp_path: Path) -> Iterator[Job]:
    """A job with a result, which an engine serves."""
    with answering() as engine, transaction(sessions) as session:
        make_base_model(session, tmp_path / "base", name="tiny")
        make_base_model(session, tmp_path / "large", name=BASE)
        job = make_trained_job(session, storage, project, tmp_path / "made")
        deliver(session, job, engine.url, encryption_keys=[SECRET_KEY])
        session.commit()
        yield job


@pytest.fixture
def evaluating_worker(settings: Settings, tmp_path: Path) -> Iterator[None]:
    lock, command = partial(try_lock, tmp_path / "trainer.lock"), fake(tmp_path, ANSWERS)
    with running_slot(settings, lambda resources: Evaluator(resources, "gpu0@test#1", lock, None, command)):
        yield


@pytest.fixture
def reader_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of an agent, with the files that the skills name."""
    directory = tmp_path / "reader"
    directory.mkdir()
    monkeypatch.chdir(directory)
    lines = chat_lines(36).splitlines(keepends=True)
    for name, rows in (
        ("train", lines[:12]),
        ("valid", lines[12:24]),
        ("heldout", lines[24:]),
        ("prompts", lines[30:]),
    ):
        (directory / f"{name}.jsonl").write_bytes(b"".join(rows))
    make_tiny_pairs(directory / "preferences.jsonl")
    table = "".join(f"mail {number},{'refund' if number % 2 else 'delivery'}\n" for number in range(40))
    (directory / "tickets.csv").write_text("text,label\n" + table)
    return directory


@pytest.mark.parametrize("skill", sorted(path.name for path in SKILLS.iterdir()))
def test_every_command_runs_in_the_order_of_the_files(
    operator: Tunery, skill: str, job: Job, evaluating_worker: None, reader_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert len(commands(skill)) >= 8
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    operator("targets", "create", "production", "--kind", "directory", "--set", "path=/srv/adapters")
    with stand_in_openai() as account:
        account.add_file("file-train")
        account.add_job("ftjob-aaaa")
        for command in commands(skill):
            program, *words = shlex.split(command)
            assert program == "tunery", command
            arguments = [job.id if word == "JOB" else word for word in words]
            more = ["--openai-url", account.url] if words[:2] == ["import", "openai"] else []
            done = operator(*arguments, *more)
            assert done.exit_code == 0, f"{command}: {done.err}{done.out}"
    created = [each for each in operator("jobs", "list", "--json").json if each["id"] != job.id]
    assert {each["model"] for each in created} == {BASE}
    reports = {path.name for path in reader_directory.glob("*.md")}
    assert reports == {"parity.md" if skill == "migrate-from-openai" else "report.md"}


@pytest.mark.parametrize("skill", sorted(path.name for path in SKILLS.iterdir()))
def test_each_has_its_name_a_description_and_links_with_targets(skill: str) -> None:
    page = (SKILLS / skill / "SKILL.md").read_text(encoding="utf-8")
    front = dict(line.split(": ", 1) for line in page.split("---\n")[1].splitlines())
    assert front.keys() == {"name", "description"}
    assert (front["name"], len(front["description"]) <= 1024) == (skill, True)  # the limits of the format
    assert len(page.splitlines()) < 150
    links = [path.parent / link for path in pages(skill) for link in LINK.findall(path.read_text(encoding="utf-8"))]
    assert [link for link in links if not link.exists()] == []
