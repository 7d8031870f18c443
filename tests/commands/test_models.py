"""`tunery models`; tests/commands/test_resources.py has what is alike for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.client.http import Json
from app.cli.commands import models
from app.cli.errors import CliError
from app.db.tables import Job
from app.settings import Settings
from app.system import model_registration
from tests.commands.conftest import Tunery
from tests.commands.running_slot import running_slot
from tests.operations.test_model_hub import COMMIT, SOURCE, Hub, hub  # noqa: F401  a fixture
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base
from worker.base_models import Registrar


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    places = {"base_model_directories": (str(tmp_path),), "base_model_pull_directory": str(tmp_path / "pulled")}
    return settings.model_copy(update=places)


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    return make_tiny_base(tmp_path / "tiny")


@pytest.fixture
def registrar(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker that runs registrations, without the trainer's check, which takes seconds."""
    monkeypatch.setattr(model_registration, "can_check", lambda: False)
    monkeypatch.setattr("app.cli.client.polling.POLL_SECONDS", 0.02)
    with running_slot(settings, lambda resources: Registrar(resources, "export.cpu0@test#1")):
        yield


@pytest.mark.usefixtures("registrar")
def test_a_directory_is_registered_and_its_place_shown(
    operator: Tunery, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_directory.parent)
    done = operator(
        "models", "add", "Org/Tiny", "tiny", "--source", "a/b", "--learning-rate", "1e-3", "--license", "mit"
    )
    assert done.exit_code == 0, done.err
    assert done.out.startswith("Org/Tiny: LlamaForCausalLM, ")
    assert "Not checked" in done.err
    assert operator("models", "where", "Org/Tiny").out == f"{model_directory}\n"
    shown = operator("models", "where", "Org/Tiny", "--json").json
    assert (shown["source"], shown["learning_rate"], shown["license"]) == ("a/b", 1e-3, "mit")
    (model_directory / "tokenizer.json").unlink()
    refused = operator("models", "add", "Org/Tiny", model_directory)
    assert (refused.exit_code, "tokenizer.json" in refused.err) == (2, True)


@pytest.mark.usefixtures("registrar")
@pytest.mark.parametrize("place", ["the worker", "this host"])
def test_a_model_is_pulled_from_its_hub_and_registered_with_its_commit(
    operator: Tunery,
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    place: str,
) -> None:
    parent = tmp_path / ("pulled" if place == "the worker" else "here")
    directory = () if place == "the worker" else (parent,)
    done = operator("models", "pull", f"{SOURCE}@v1", *directory, "--name", "tiny", "--license", "mit")
    assert done.exit_code == 0, done.err
    shown = operator("models", "where", "tiny", "--json").json
    assert shown["directory"] == str(parent / f"tiny-{COMMIT[:12]}")
    assert (shown["source"], shown["revision"], shown["license"]) == (SOURCE, COMMIT, "mit")
    unknown = operator("models", "pull", f"{SOURCE}@v9", *directory)
    assert (unknown.exit_code, "v9" in unknown.err) == (2, True)


def test_an_alias_is_refused_as_a_name_before_the_download(
    operator: Tunery,
    hub: Hub,  # noqa: F811
    base_model: str,
    tmp_path: Path,
    reviewed: Reviewed,
) -> None:
    operator("models", "alias", "gpt-old", base_model)
    refused = operator("models", "pull", SOURCE, tmp_path / "here", "--name", "gpt-old")
    assert (refused.exit_code, hub.requests) == (2, [])
    reviewed(refused.err)


def test_a_model_that_another_operator_removes_at_once_is_named() -> None:
    class ClientOfTheSecond:
        def post(self, *_: object) -> Json:
            return {"id": "reg_1", "status": "succeeded", "finished_at": 1, "notes": [], "error": None}

        def get(self, _: str) -> Json:
            return {"data": []}

    client: Any = ClientOfTheSecond()
    with pytest.raises(CliError, match="has been removed"):
        models._register(client, {"name": "Org/Tiny"})


def test_an_alias_of_a_removed_model_says_so(operator: Tunery, base_model: str) -> None:
    assert operator("models", "alias", "gpt-old", base_model).out == f"gpt-old -> {base_model}\n"
    operator("models", "remove", base_model)
    assert f"{base_model} (removed)" in operator("models", "aliases").out


def test_the_name_of_a_trained_model_is_deleted(tunery: Tunery, trained_job: Job) -> None:
    name = trained_job.fine_tuned_model
    assert tunery("models", "delete", name).out == f"{name} deleted\n"
    assert name not in tunery("models", "list").out
    assert tunery("models", "delete", name).exit_code == 3
