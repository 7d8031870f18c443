"""The plugin against a real Tunery: names, keys, base models, the cache."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tunery_vllm.adapters import hash_base
from tunery_vllm.service import Archive, Service, ServiceUnavailable
from tunery_vllm.settings import Settings as PluginSettings

from app.db.base_models import models
from app.db.engine import Sessions, transaction
from app.db.tables import Job, Project, TunedModel
from app.services.access import keys
from app.settings import Settings
from app.storage import LocalStorage
from app.system import model_files
from tests.commands.trained import WEIGHTS, make_trained_job
from tests.factories import make_project
from tests.loopback import Answer, Received, serving_loopback
from tests.serving import LiveServer, free_port

Resolve = Callable[..., Path | None]


@pytest.fixture
def base(base_model: str, tmp_path: Path) -> Path:
    return tmp_path / "models" / base_model


@pytest.fixture
def job(sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path) -> Job:
    with transaction(sessions) as session:
        return make_trained_job(session, storage, project, tmp_path / "made")


@pytest.fixture
def resolve(live_server: LiveServer, api_key: str, base: Path, tmp_path: Path) -> Resolve:
    """Resolve a name as vLLM does, in a new resolver that has the cache of the earlier ones."""

    def resolve(name: str, url: str = live_server.root, key: str = api_key, **options: Any) -> Path | None:
        from tunery_vllm.resolver import TuneryResolver

        served = str(options.pop("served", base))
        settings = PluginSettings(url, key, tmp_path / "cache", timeout_seconds=30, **options)
        request = asyncio.run(TuneryResolver.from_settings(settings).resolve_lora(served, name))
        assert request is None or (request.lora_name, request.lora_int_id) == (name, 1)
        return request and Path(request.lora_path)

    return resolve


@pytest.fixture
def away() -> str:
    """An address at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}"


class TestNames:
    def test_the_result_of_a_job_is_downloaded_once_and_verified(self, resolve: Resolve, job: Job) -> None:
        directory = resolve(job.fine_tuned_model)
        assert directory is not None
        assert (directory / "adapter_model.safetensors").read_bytes() == WEIGHTS
        assert directory.name == job.adapter_sha256
        written_at = directory.stat().st_mtime_ns
        assert resolve(job.fine_tuned_model) == directory
        assert directory.stat().st_mtime_ns == written_at

    def test_a_kept_checkpoint_has_a_directory_of_its_own(self, resolve: Resolve, job: Job) -> None:
        directory = resolve(f"{job.fine_tuned_model}:ckpt-step-2")
        assert directory is not None
        assert json.loads((directory / "adapter_config.json").read_text())["step"] == 2
        assert resolve(f"{job.fine_tuned_model}:ckpt-step-3") is None

    @pytest.mark.parametrize(
        "name", ["ft:tiny:tunery:demo:00000000", "ft:", "ft:a/../b", "ft:tiny?x=1", "ft:" + "x" * 600]
    )
    def test_an_unknown_name_is_vllms_404(self, resolve: Resolve, job: Job, name: str) -> None:
        assert resolve(name) is None

    def test_other_names_are_never_sent(self, resolve: Resolve, away: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "vllm.tunery"):
            assert resolve("gpt-4o", url=away) is None
        assert caplog.records == []

    def test_a_deleted_model_stays_unknown(self, resolve: Resolve, job: Job, sessions: Sessions, away: str) -> None:
        assert resolve(job.fine_tuned_model) is not None
        with transaction(sessions) as session:
            models.delete_tuned(session, session.get_one(TunedModel, job.fine_tuned_model))
        assert resolve(job.fine_tuned_model) is None
        assert resolve(job.fine_tuned_model, url=away) is None


class TestKeys:
    def test_the_models_of_another_project_are_unknown(self, resolve: Resolve, job: Job, sessions: Sessions) -> None:
        with transaction(sessions) as session:
            other = keys.issue(session, make_project(session, "other"), "test").secret
        assert resolve(job.fine_tuned_model, key=other) is None

    def test_three_scopes_are_enough(self, resolve: Resolve, job: Job, sessions: Sessions, project: Project) -> None:
        with transaction(sessions) as session:
            key = keys.issue(session, project, "vllm", ["models:read", "jobs:read", "files:read"]).secret
        assert resolve(job.fine_tuned_model, key=key) is not None
        assert resolve(f"{job.fine_tuned_model}:ckpt-step-2", key=key) is not None

    @pytest.mark.parametrize("scopes", [["files:read"], None], ids=["without the scope", "unknown"])
    def test_a_refused_key_gets_nothing_from_the_cache(
        self,
        resolve: Resolve,
        job: Job,
        sessions: Sessions,
        project: Project,
        caplog: pytest.LogCaptureFixture,
        scopes: list[str] | None,
    ) -> None:
        assert resolve(job.fine_tuned_model) is not None
        key = "tnry_wrong"
        if scopes:
            with transaction(sessions) as session:
                key = keys.issue(session, project, "vllm", scopes).secret
        assert resolve(job.fine_tuned_model, key=key) is None
        assert "refuses the key" in caplog.text
        assert key not in caplog.text

    def test_a_redirect_to_another_host_does_not_get_the_key(self, tmp_path: Path) -> None:
        seen: list[Received] = []

        def answer(request: Received) -> Answer:
            seen.append(request)
            return 200, {}, b"bytes"

        with (
            serving_loopback(answer) as other,
            serving_loopback(lambda _: (307, {"Location": f"http://localhost:{other}/object"}, b"")) as tunery,
        ):
            service = Service(f"http://127.0.0.1:{tunery}", "tnry_key", 5)
            archive = Archive("files/f/content", "0" * 64, 5)
            with pytest.raises(ServiceUnavailable, match="SHA-256"):
                service.download(archive, tmp_path / "a.tar")
        assert ["authorization" in each.headers for each in seen] == [False]


class TestAway:
    def test_a_resolved_name_is_served_from_the_cache(self, resolve: Resolve, job: Job, away: str) -> None:
        directory = resolve(job.fine_tuned_model)
        assert resolve(job.fine_tuned_model, url=away) == directory

    def test_another_name_is_a_404_with_the_reason_in_the_log(
        self, resolve: Resolve, job: Job, away: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert resolve(job.fine_tuned_model, url=away) is None
        assert "Tunery is unavailable" in caplog.text

    def test_a_failing_server_counts_as_away(self, resolve: Resolve, job: Job) -> None:
        directory = resolve(job.fine_tuned_model)
        with serving_loopback(lambda _: (503, {}, b"")) as port:
            assert resolve(job.fine_tuned_model, url=f"http://127.0.0.1:{port}") == directory


class TestBase:
    def test_the_hash_of_a_base_is_tunerys(self, base: Path) -> None:
        assert hash_base(base) == model_files.hash_directory(base)[1]

    def test_an_adapter_of_other_base_files_is_refused(
        self, resolve: Resolve, job: Job, base: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert resolve(job.fine_tuned_model) is not None
        (base / "generation_config.json").write_text("{}")
        assert resolve(job.fine_tuned_model) is None
        assert f"not those of {base}" in caplog.text
        assert resolve(job.fine_tuned_model, base_model="tiny") is not None
        assert resolve(job.fine_tuned_model, base_model="other") is None

    def test_a_served_name_that_is_no_directory_needs_the_registered_name(
        self, resolve: Resolve, job: Job, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert resolve(job.fine_tuned_model, served="org/model") is None
        assert "TUNERY_BASE_MODEL" in caplog.text
        assert resolve(job.fine_tuned_model, served="org/model", base_model="tiny") is not None


class TestDamage:
    def test_altered_bytes_never_reach_the_cache(
        self, resolve: Resolve, job: Job, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for path in (settings.storage_dir / "objects").rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            if WEIGHTS in content and content != WEIGHTS:  # the archives
                path.chmod(0o644)
                path.write_bytes(content.replace(WEIGHTS, WEIGHTS[::-1]))
        assert resolve(job.fine_tuned_model) is None
        assert "instead of" in caplog.text
        assert [path.name for path in (tmp_path / "cache" / "adapters").iterdir()] == []

    def test_two_servers_with_one_cache_resolve_one_name(self, resolve: Resolve, job: Job) -> None:
        found: list[Path | None] = []
        threads = [threading.Thread(target=lambda: found.append(resolve(job.fine_tuned_model))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(found), len(set(found)), None in found) == (4, 1, False)
