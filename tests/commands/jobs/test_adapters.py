from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from safetensors.torch import load_file, save_file

from app.db import files
from app.db.engine import Sessions, transaction
from app.db.tables import File, Job, Project
from app.storage import LocalStorage
from app.system.artifact_directory import ADAPTER_WEIGHTS, verify, write_manifest
from app.system.model_files import hash_directory
from tests.commands.conftest import Tunery
from tests.commands.trained import make_trained_job
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base


@pytest.fixture
def archive(sessions: Sessions, storage: LocalStorage, trained_job: Job) -> Path:
    """The finished job's archive, where the server keeps it."""
    assert trained_job.adapter_archive_file_id is not None
    with transaction(sessions) as session:
        return path_of(storage, files.get_even_deleted(session, trained_job.adapter_archive_file_id))


def path_of(storage: LocalStorage, file: File | None) -> Path:
    assert file is not None
    return storage.objects / file.storage_key


def part_of(directory: Path, job: Job) -> Path:
    assert job.adapter_sha256 is not None
    return directory.with_name(f".{directory.name}.{job.adapter_sha256[:12]}.part")


class TestDownload:
    def test_an_adapter_is_downloaded_and_verified(self, tunery: Tunery, trained_job: Job, tmp_path: Path) -> None:
        done = tunery("adapters", "download", trained_job.id, "-o", tmp_path / "out" / "adapter")
        assert done.exit_code == 0, done.err
        assert done.out.strip() == str(tmp_path / "out" / "adapter")
        assert verify(tmp_path / "out" / "adapter")["step"] == 4
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
        result = tunery("adapters", "download", trained_job.id, "-o", tmp_path / "a", "--json").json
        assert result["sha256"] == trained_job.adapter_sha256
        assert sorted(result["files"]) == ["adapter_config.json", "adapter_model.safetensors"]

    def test_a_checkpoint_is_downloaded_into_a_directory_of_its_step(
        self, tunery: Tunery, trained_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        tunery("adapters", "download", trained_job.id, "--checkpoint", 2)
        assert verify(tmp_path / f"{trained_job.id}-step-2")["step"] == 2
        tunery("adapters", "download", trained_job.id)
        assert verify(tmp_path / trained_job.id)["step"] == 4


class TestResume:
    @pytest.mark.parametrize("have", [1, 70_000, -1, None])
    def test_a_resumed_download_fetches_only_the_rest(
        self, tunery: Tunery, trained_job: Job, archive: Path, tmp_path: Path, have: int | None
    ) -> None:
        """A part that is not what the server has makes the whole corrupt, so it was used."""
        part = part_of(tmp_path / "a", trained_job)
        for first_byte, exit_code in ((b"\xff", 1), (archive.read_bytes()[:1], 0)):
            part.write_bytes(first_byte + archive.read_bytes()[1:have])
            assert tunery("adapters", "download", trained_job.id, "-o", tmp_path / "a").exit_code == exit_code
            assert not part.exists()
        verify(tmp_path / "a")

    def test_a_download_is_resumed_after_a_lost_connection(
        self, tunery: Tunery, trained_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str | None] = []
        whole = httpx2.Response.iter_bytes

        def breaking(response: httpx2.Response, size: int | None = None) -> Iterator[bytes]:
            if not response.url.path.endswith("/archive"):
                yield from whole(response, size)
                return
            asked.append(response.request.headers.get("range"))
            for number, block in enumerate(whole(response, 50_000)):
                if number == 3 and len(asked) < 3:
                    raise httpx2.ReadError("broken")
                yield block

        monkeypatch.setattr(httpx2.Response, "iter_bytes", breaking)
        done = tunery("adapters", "download", trained_job.id, "-o", tmp_path / "a")
        assert done.exit_code == 0, done.err
        assert asked == [None, "bytes=150000-", "bytes=300000-"]
        verify(tmp_path / "a")


class TestMerge:
    """The program runs as a child on this machine; the command itself never imports torch."""

    @pytest.fixture
    def job(self, sessions: Sessions, storage: LocalStorage, project: Project, base_model: str, tmp_path: Path) -> Job:
        base = tmp_path / "tiny"

        def write(directory: Path, step: int) -> Path:
            directory.mkdir(parents=True)
            layer = "base_model.model.model.layers.0.self_attn.q_proj"
            factors = {f"{layer}.lora_A.weight": torch.ones(2, 64), f"{layer}.lora_B.weight": torch.ones(64, 2)}
            save_file(factors, directory / ADAPTER_WEIGHTS)
            about = {
                "step": step,
                "base_model": {"name": base_model, "manifest_sha256": hash_directory(base)[1]},
                "lora": {"r": 2, "alpha": 1, "target_modules": ["q_proj"]},
            }
            write_manifest(directory, about)
            return directory

        with transaction(sessions) as session:
            return make_trained_job(session, storage, project, tmp_path / "made", write)

    def test_an_adapter_is_merged_into_its_base(self, tunery: Tunery, job: Job, tmp_path: Path) -> None:
        base, merged = tmp_path / "tiny", tmp_path / "out" / "merged"
        result = tunery("adapters", "merge", job.id, "--base", base, "--to", merged, "--json").json
        assert (result["directory"], result["changed"]) == (str(merged), 1)
        assert [path.name for path in merged.parent.iterdir()] == ["merged"]
        name = "model.layers.0.self_attn.q_proj.weight"
        before, after = (load_file(each / "model.safetensors")[name].float() for each in (base, merged))
        torch.testing.assert_close(after, before + 1, rtol=2**-8, atol=0)

    @pytest.mark.extended("another start of the real program")
    def test_another_base_is_refused(self, tunery: Tunery, job: Job, tmp_path: Path, reviewed: Reviewed) -> None:
        other = make_tiny_base(tmp_path / "other", seed=1)
        done = tunery("adapters", "merge", job.id, "--base", other, "--to", tmp_path / "out" / "merged")
        assert done.exit_code == 2
        reviewed(re.sub(r"\b[0-9a-f]{12}\b", "HASH", done.err.replace(str(tmp_path), "HERE")))
        assert list((tmp_path / "out").iterdir()) == []
