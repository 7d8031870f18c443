"""Registrations of base models on a worker: checks, symbolic links, lost workers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from app.db.base_models import models
from app.db.engine import transaction
from app.db.tables import BaseModelRegistration
from app.services import base_models
from app.settings import Settings
from app.system import model_files, model_registration
from app.system.model_registration import RegistrationOptions
from tests.operations.test_model_hub import COMMIT, SOURCE, Hub, hub  # noqa: F401  a fixture
from tests.tiny import make_tiny_base
from worker.base_models import Registrar
from worker.node.resources import Resources

OWNER = "export.cpu0@test#1"


@pytest.fixture
def models_root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def settings(settings: Settings, models_root: Path) -> Settings:
    return settings.model_copy(
        update={
            "base_model_directories": (str(models_root),),
            "base_model_pull_directory": str(models_root),
            "hub_token": SecretStr("secret"),
        }
    )


@pytest.fixture
def model_directory(models_root: Path) -> Path:
    return make_tiny_base(models_root / "tiny")


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's check takes seconds, and most tests are about something else."""
    monkeypatch.setattr(model_registration, "can_check", lambda: False)


def register(resources: Resources, directory: Path, **options: str) -> str:
    with transaction(resources.sessions) as session:
        allowed = resources.settings.base_model_directories
        return base_models.register(session, allowed, None, "tiny", str(directory), RegistrationOptions(**options)).id  # type: ignore[arg-type]


def run(resources: Resources, registration_id: str) -> BaseModelRegistration:
    assert Registrar(resources, OWNER).run_next()
    with transaction(resources.sessions) as session:
        return session.get_one(BaseModelRegistration, registration_id)


def test_a_model_is_checked_by_the_trainer_hashed_and_offered(resources: Resources, model_directory: Path) -> None:
    ended = run(resources, register(resources, model_directory, source="a/b", revision="v1"))
    assert (ended.state, ended.error_message) == ("succeeded", None)
    assert any("can be trained" in note for note in ended.notes)
    with transaction(resources.sessions) as session:
        [row] = models.list_base(session)
    assert (row.name, row.directory) == ("tiny", str(model_directory))
    assert (row.entry["source"], row.entry["revision"]) == ("a/b", "v1")
    assert (row.files, row.manifest_sha256) == model_files.hash_directory(model_directory)
    assert not Registrar(resources, OWNER).run_next()


@pytest.mark.extended("another start of the real program")
def test_a_model_that_cannot_be_trained_fails_with_every_reason(resources: Resources, model_directory: Path) -> None:
    weights = load_file(model_directory / "model.safetensors")
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(weights, model_directory / "model.safetensors")
    ended = run(resources, register(resources, model_directory))
    assert (ended.state, ended.error_code) == ("failed", "refused_model")
    assert "missing: model.norm.weight" in (ended.error_message or "")
    assert "not finite: model.layers.0.mlp.up_proj.weight" in (ended.error_message or "")
    with transaction(resources.sessions) as session:
        assert models.list_base(session) == []


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 16}, "multi-head latent attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
        ({"hidden_size": [64]}, "positive integers"),
    ],
)
def test_an_architecture_that_cannot_be_trained_is_refused_with_the_true_reason(
    resources: Resources, model_directory: Path, changes: dict[str, object], reason: str
) -> None:
    path = model_directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    ended = run(resources, register(resources, model_directory))
    assert (ended.state, ended.error_code) == ("failed", "refused_model")
    assert reason in (ended.error_message or "")


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("linked", ["directory", "file"])
def test_a_symbolic_link_that_leads_out_of_the_allowed_directories_is_refused(
    resources: Resources, models_root: Path, tmp_path: Path, linked: str
) -> None:
    outside = make_tiny_base(tmp_path / "outside")
    if linked == "directory":
        models_root.mkdir()
        (models_root / "tiny").symlink_to(outside)
    else:
        inside = make_tiny_base(models_root / "tiny")
        (inside / "model.safetensors").unlink()
        (inside / "model.safetensors").symlink_to(outside / "model.safetensors")
    ended = run(resources, register(resources, models_root / "tiny"))
    assert (ended.state, ended.error_code) == ("failed", "directory_not_allowed")
    assert str(outside) in (ended.error_message or "")


@pytest.mark.usefixtures("without_torch")
def test_a_link_within_the_allowed_directories_is_followed(
    resources: Resources, models_root: Path, model_directory: Path
) -> None:
    (models_root / "latest").symlink_to(model_directory)
    assert run(resources, register(resources, models_root / "latest")).state == "succeeded"


@pytest.mark.usefixtures("without_torch")
def test_a_directory_that_this_host_lacks_is_named(resources: Resources, models_root: Path) -> None:
    ended = run(resources, register(resources, models_root / "nothing"))
    assert (ended.state, ended.error_code) == ("failed", "refused_model")
    assert "nothing" in (ended.error_message or "")


@pytest.mark.usefixtures("without_torch")
def test_a_stopping_worker_queues_its_registration_again(resources: Resources, model_directory: Path) -> None:
    registration_id = register(resources, model_directory)
    resources.stop.set()
    assert run(resources, registration_id).state == "queued"
    resources.stop.clear()
    assert run(resources, registration_id).state == "succeeded"


def queue_pull(resources: Resources, revision: str = "main") -> str:
    with transaction(resources.sessions) as session:
        parent = resources.settings.base_model_pull_directory
        return base_models.register(
            session, (), parent, "pulled", None, RegistrationOptions(source=SOURCE, revision=revision)
        ).id


@pytest.mark.usefixtures("without_torch")
def test_a_model_is_downloaded_with_the_token_of_the_settings_and_registered(
    resources: Resources,
    hub: Hub,  # noqa: F811
    models_root: Path,
) -> None:
    hub.token = "secret"
    ended = run(resources, queue_pull(resources))
    directory = models_root / f"tiny-{COMMIT[:12]}"
    assert (ended.state, ended.directory, ended.revision) == ("succeeded", str(directory), COMMIT)
    with transaction(resources.sessions) as session:
        [row] = models.list_base(session)
    assert (row.directory, row.entry["source"], row.entry["revision"]) == (str(directory), SOURCE, COMMIT)


def test_a_worker_without_a_network_says_what_to_do(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    ended = run(resources, queue_pull(resources))
    assert (ended.state, ended.error_code) == ("failed", "hub_unavailable")
    assert "http://127.0.0.1:1" in (ended.error_message or "")


@pytest.mark.usefixtures("without_torch")
def test_a_download_stops_with_its_worker_and_goes_on_later(
    resources: Resources,
    hub: Hub,  # noqa: F811
) -> None:
    hub.token, registration_id = "secret", queue_pull(resources)
    hub.on_weights = resources.stop.set
    assert run(resources, registration_id).state == "queued"
    hub.on_weights = None
    resources.stop.clear()
    assert run(resources, registration_id).state == "succeeded"
